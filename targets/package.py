"""A model for a microcontroller as a folder that ESP-IDF, Arduino and PlatformIO take as it is.

The files in ``package_files/`` are what is written, with a word between two ``@`` for what differs.
Their paths are those in the folder; sources lie in ``src/``, where all three look for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from ..compiler.codes import takes_codes
from ..compiler.ir import Graph, Type
from ..compiler.lower.model_c import C_TYPES
from .package_float import float_header
from .package_selftest import selftest
from .registry import Core

TEMPLATES = Path(__file__).parent / "package_files"
# ESP-IDF's names of chips. Other targets of ours are for any chip.
IDF_TARGET = re.compile(r"esp32([a-z][0-9]+)?")


def package(
    graph: Graph, core: Core, name: str, golden: Mapping[str, np.ndarray]
) -> dict[str, str]:
    """What the folder holds beside the model: a self-test by ``golden``, and what each build wants.

    Paths and texts. If numbers go in or out as codes there is a header that makes floats of them.
    """
    words = _words(graph, core, name)
    written = selftest(graph, name, golden)
    if has_codes(graph):
        written[f"{name}_float.h"] = float_header(graph, name)
    files = {f"src/{file}": text for file, text in written.items()}
    return files | {_filled(path, words): _filled(text, words) for path, text in _templates()}


def has_codes(graph: Graph) -> bool:
    """Whether an input or an output stands for real numbers."""
    return any(takes_codes(node.type) for node in (*graph.inputs, *graph.outputs))


@cache
def _templates() -> tuple[tuple[str, str], ...]:
    """Path and text of each template, sorted by path."""
    files = sorted(path for path in TEMPLATES.rglob("*") if path.is_file())
    return tuple(
        (path.relative_to(TEMPLATES).as_posix(), path.read_text("utf-8")) for path in files
    )


def _filled(text: str, words: Mapping[str, str]) -> str:
    return re.sub(r"@([A-Z_]+)@", lambda match: words[match[1]], text)


def _words(graph: Graph, core: Core, name: str) -> dict[str, str]:
    """What stands for each word of the templates."""
    upper = name.upper()
    chip = core.name if IDF_TARGET.fullmatch(core.name) else ""
    return {
        "NAME": name,
        "UPPER": upper,
        "TARGET": f"{core.name} ({core.description})",
        "CHIP": chip or "CHIP",
        "IDF_TARGETS": f"targets:\n  - {chip}" if chip else "# No targets: it runs on every chip.",
        # C has no array of no bytes.
        "ARENA": f"{upper}_ARENA_BYTES" if graph.notes.get("arena_bytes") else "1",
        "PORTS": "\n".join(_ports(graph, upper)),
        "EXAMPLE": _example(graph, name),
        "FLOATS": _FLOATS.replace("@NAME@", name).replace("@UPPER@", upper)
        if has_codes(graph)
        else "",
    }


_FLOATS = """
## Floats

`src/@NAME@_float.h` turns floats to codes and back, to the bit as butterflyc does. Only what
includes it holds float arithmetic, which is slow on a chip without an FPU.
"""


def _ports(graph: Graph, upper: str) -> list[str]:
    inputs = [("input", node.name, node.type) for node in graph.inputs]
    outputs = [
        ("output", name, node.type) for name, node in zip(graph.results, graph.outputs, strict=True)
    ]
    return [
        f"| {kind} {place}: `{name}` | {_shape(type)} | `{C_TYPES[type.dtype]}` | {scale} |"
        for ports in (inputs, outputs)
        for place, (kind, name, type) in enumerate(ports)
        for scale in [f"`{upper}_{kind.upper()}{place}_SCALE`" if takes_codes(type) else ""]
    ]


def _shape(type: Type) -> str:
    return " x ".join(map(str, type.shape)) or "a number"


def _example(graph: Graph, name: str) -> str:
    """C that computes the outputs: variables named as in the table, and the call."""
    upper = name.upper()
    inputs, outputs = (
        [f"static {C_TYPES[n.type.dtype]} {kind}{i}[{n.type.size}];" for i, n in enumerate(nodes)]
        for kind, nodes in (("input", graph.inputs), ("output", graph.outputs))
    )
    size = f"{upper}_ARENA_BYTES" if graph.notes.get("arena_bytes") else "1"
    head = [
        f'#include "{name}.h"',
        "",
        f"static unsigned char arena[{size}] __attribute__((aligned(64)));",
        *inputs,
        *outputs,
        "",
        "int compute(void)",
        "{",
    ]
    if len(inputs) == len(outputs) == 1:
        return "\n".join([*head, f"    return {name}_predict(input0, output0, arena);", "}"])
    given = ", ".join(f"input{i}" for i in range(len(inputs)))
    found = ", ".join(f"output{i}" for i in range(len(outputs)))
    calls = [
        f"    const void *const in[] = {{{given or 0}}};",
        f"    void *const out[] = {{{found}}};",
        f"    return {name}_run(in, out, arena); /* 0 if all is well */",
        "}",
    ]
    return "\n".join([*head, *calls])
