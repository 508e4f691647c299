"""The program ``NAME-run``: a compiled model on files of NumPy arrays, for its own machine.

Its source is ``compiler/run/command/``; what is the model's stands in a header that is made here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..ir import Type
from .cross import Compiler
from .link import link_program

SOURCES = Path(__file__).parent.parent / "run" / "command"
HEADER = """\
#include "{name}.h"
#define MODEL_NAME "{name}"
#define MODEL_TARGET "{target}"
#define MODEL_RUN {name}_run
{threads}#define MODEL_SPLITS {splits}
#define MODEL_INPUTS {input_count}
#define MODEL_OUTPUTS {output_count}

static const struct port inputs[MODEL_INPUTS + 1] = {{
{inputs}}};
static const struct port outputs[MODEL_OUTPUTS + 1] = {{
{outputs}}};
"""
ONE_THREAD = """\
#define MODEL_THREADS 1
#define MODEL_ARENA_BYTES {upper}_ARENA_BYTES
"""
THREADS = """\
#define MODEL_THREADS {count}
#define MODEL_RUN_MT {name}_run_mt
#define MODEL_POOL {name}_pool
#define MODEL_POOL_CREATE {name}_pool_create
#define MODEL_POOL_DESTROY {name}_pool_destroy
#define MODEL_ARENA_BYTES {upper}_MT_ARENA_BYTES
"""
Port = Mapping[str, Any]


def command_name(name: str) -> str:
    """The file name of the program of a model."""
    return f"{name}-run"


def command_program(
    manifest: Mapping[str, Any],
    header: bytes,
    library: bytes,
    compiler: Compiler,
    progress: Callable[[str], None] = lambda _: None,
) -> bytes:
    """The program, linked of ``NAME.h`` and ``libNAME.a``; ``manifest`` is the artefact's."""
    name = manifest["name"]
    progress(f"linking {command_name(name)} {compiler.notice}".rstrip())
    archive = f"lib{name}.a"
    files = {path.name: path.read_bytes() for path in sorted(SOURCES.iterdir())}
    files |= {
        "command-model.h": model_header(manifest).encode(),
        f"{name}.h": header,
        archive: library,
    }
    return link_program(files, [archive], compiler, progress)


def model_header(manifest: Mapping[str, Any]) -> str:
    """What is the model's own, in C: its functions, and the table of its ports."""
    name, inputs, outputs = (manifest[key] for key in ("name", "inputs", "outputs"))
    count = manifest.get("threads", 1)
    threads = THREADS if count > 1 else ONE_THREAD
    return HEADER.format(
        name=name,
        threads=threads.format(name=name, upper=name.upper(), count=count),
        target=manifest["target"],
        splits=int(manifest["splits"]),
        input_count=len(inputs),
        output_count=len(outputs),
        inputs=_ports(inputs),
        outputs=_ports(outputs),
    )


def _ports(ports: Sequence[Port]) -> str:
    # The table has one row more, all zeros, since C has no empty one.
    return "".join(f"  {{{_port(port)}}},\n" for port in ports) + "  {0},\n"


def _port(port: Port) -> str:
    type = Type(port["dtype"], tuple(port["shape"]))
    kind = type.storage
    # Letters and digits alone need no escape in C.
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in port["name"])
    shape = ", ".join(map(str, type.shape)) or "0"
    scale = repr(float(port.get("scale") or 0))
    words = f'"{name}", "{kind.newbyteorder("<").str}", "{kind.name}", {kind.itemsize}'
    return f"{words}, {scale}, {type.rank}, {{{shape}}}"
