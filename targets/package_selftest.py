"""``NAME_selftest.c``: inputs of a model, the outputs that they must have, and the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..compiler.codes import encode
from ..compiler.ir import Graph, Node
from ..compiler.lower.emit_c_types import SHORT_TYPES, literal
from ..compiler.lower.model_c import C_TYPES

MAX_SAMPLES = 4
MAX_BYTES = 16384  # of flash, unless the first sample alone takes more
NUMBERS_A_LINE = 20
_LONG = {short: dtype for dtype, short in SHORT_TYPES.items()}

Sample = tuple[list[np.ndarray], list[np.ndarray]]


def selftest(graph: Graph, name: str, golden: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The header and the source. ``golden`` holds arrays ``000.input.0``, ``000.expected.0``."""
    samples = chosen(graph, golden)
    return {
        f"{name}_selftest.h": _header(name, len(samples)),
        f"{name}_selftest.c": _source(graph, name, samples),
    }


def chosen(graph: Graph, golden: Mapping[str, np.ndarray]) -> list[Sample]:
    """The first few samples that differ, as the program takes and gives them, in codes."""
    size = sum(node.type.bytes for node in (*graph.inputs, *graph.outputs))
    most = max(1, min(MAX_SAMPLES, MAX_BYTES // max(1, size)))
    found: dict[bytes, Sample] = {}
    for place in sorted({key.split(".")[0] for key in golden}):
        inputs = _codes(graph.inputs, golden, f"{place}.input")
        outputs = _codes(graph.outputs, golden, f"{place}.expected")
        # The example that a model is compiled with is often the first of the calibration set.
        found.setdefault(b"".join(codes.tobytes() for codes in inputs), (inputs, outputs))
    assert found, "a program has at least the example that it was compiled with"
    return list(found.values())[:most]


def _codes(nodes: Sequence[Node], golden: Mapping[str, np.ndarray], kind: str) -> list[np.ndarray]:
    # The expected outputs were codes times their scale, so that the nearest codes are the same.
    return [encode(golden[f"{kind}.{j}"], node.type).reshape(-1) for j, node in enumerate(nodes)]


def _header(name: str, samples: int) -> str:
    upper = name.upper()
    return f"""\
/* Whether {name} computes on this chip what it should. Made by butterflyc; do not edit. */
#ifndef BUTTERFLYC_{upper}_SELFTEST_H
#define BUTTERFLYC_{upper}_SELFTEST_H

#ifdef __cplusplus
extern "C" {{
#endif

#define {upper}_SELFTEST_SAMPLES {samples}

/* Computes so many samples of which the outputs are known. Returns 0 if each bit is right, the
   number of the first sample that is not, from 1 on, or below 0 what {name}_run returned.
   The arena is that of {name}_run. Two calls must not run at the same time. */
int {name}_selftest(void *arena);

#ifdef __cplusplus
}}
#endif
#endif
"""


def _source(graph: Graph, name: str, samples: Sequence[Sample]) -> str:
    inputs, outputs = zip(*samples, strict=True)
    tables = [
        _table(f"{kind}{j}", node, [arrays[j] for arrays in rows])
        for kind, nodes, rows in (
            ("input", graph.inputs, inputs),
            ("output", graph.outputs, outputs),
        )
        for j, node in enumerate(nodes)
    ]
    found = "".join(
        f"static {C_TYPES[node.type.dtype]} found{j}[{node.type.size}];\n"
        for j, node in enumerate(graph.outputs)
    )
    checks = "".join(
        f"        if (differs(found{j}, output{j}[i], (int32_t)sizeof found{j})) return 1 + i;\n"
        for j in range(len(graph.outputs))
    )
    given = ", ".join(f"input{j}[i]" for j in range(len(graph.inputs))) or "0"
    taken = ", ".join(f"found{j}" for j in range(len(graph.outputs)))
    return f"""\
/* Inputs of {name} and the outputs that they must have. Made by butterflyc; do not edit. */
#include "{name}_selftest.h"

#include <stdint.h>

#include "{name}.h"

{"".join(tables)}
{found}
static int differs(const void *found, const void *wanted, int32_t bytes)
{{
    const unsigned char *const a = (const unsigned char *)found;
    const unsigned char *const b = (const unsigned char *)wanted;
    for (int32_t i = 0; i < bytes; ++i) {{
        if (a[i] != b[i]) return 1;
    }}
    return 0;
}}

int {name}_selftest(void *arena)
{{
    for (int i = 0; i < {name.upper()}_SELFTEST_SAMPLES; ++i) {{
        const void *const in[] = {{{given}}};
        void *const out[] = {{{taken}}};
        const int status = {name}_run(in, out, arena);
        if (status != 0) return status;
{checks}    }}
    return 0;
}}
"""


def _table(variable: str, node: Node, rows: Sequence[np.ndarray]) -> str:
    """A constant array with a row a sample."""
    type = node.type
    lines = ",\n".join("    {\n" + _numbers(row, type.dtype) + "    }" for row in rows)
    kept = C_TYPES[type.dtype]
    return f"static const {kept} {variable}[{len(rows)}][{type.size}] = {{\n{lines}\n}};\n"


def _numbers(row: np.ndarray, dtype: str) -> str:
    words = [literal(number, _LONG[dtype], "selftest") for number in row.tolist()]
    lines = [words[i : i + NUMBERS_A_LINE] for i in range(0, len(words), NUMBERS_A_LINE)]
    return "".join(f"        {', '.join(line)},\n" for line in lines)
