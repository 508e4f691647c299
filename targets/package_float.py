"""``NAME_float.h``: floats to codes and back in C, to the bit as ``compiler/codes.py`` has it.

All is ``static inline``, so that only a program that asks for floats holds float arithmetic.
"""

from __future__ import annotations

from ..compiler.codes import takes_codes
from ..compiler.ir import Graph, Type
from ..compiler.lower.model_c import ALIGNMENT, C_TYPES
from ..kernels.integer_numbers import LIMITS

# The conversion to int cuts off, and the rest is exact: no function of <math.h> is wanted.
_CODE = """\
/* The nearest code to a number, halves to even; the end for what lies beyond it, 0 for NaN. */
static inline int32_t @NAME@_code(float number, double scale, int32_t limit)
{
    const double scaled = (double)number / scale;
    int32_t code;
    double rest;
    if (scaled != scaled) return 0;
    if (scaled >= limit) return limit;
    if (scaled <= -limit) return -limit;
    code = (int32_t)scaled;
    rest = scaled - code;
    if (rest > 0.5 || (rest == 0.5 && code % 2 != 0)) return code + 1;
    if (rest < -0.5 || (rest == -0.5 && code % 2 != 0)) return code - 1;
    return code;
}
"""

_ENCODE = """\
/* The codes of input @PLACE@. */
static inline void @NAME@_encode_input@PLACE@(const float *numbers, @TYPE@ *codes)
{
    for (int32_t i = 0; i < @SIZE@; ++i) {
        codes[i] = (@TYPE@)@NAME@_code(numbers[i], @SCALE@, @LIMIT@);
    }
}
"""

_DECODE = """\
/* The numbers that the codes of output @PLACE@ stand for. */
static inline void @NAME@_decode_output@PLACE@(const @TYPE@ *codes, float *numbers)
{
    for (int32_t i = 0; i < @SIZE@; ++i) numbers[i] = (float)(codes[i] * @SCALE@);
}
"""


def float_header(graph: Graph, name: str) -> str:
    """Functions for each input and output that is codes, and the call with floats if it is one."""
    inputs = [node.type for node in graph.inputs]
    outputs = [node.type for node in graph.outputs]
    parts = [_CODE.replace("@NAME@", name)]
    parts += [_port(_ENCODE, name, "INPUT", i, t) for i, t in enumerate(inputs) if takes_codes(t)]
    parts += [_port(_DECODE, name, "OUTPUT", i, t) for i, t in enumerate(outputs) if takes_codes(t)]
    if len(inputs) == len(outputs) == 1:
        parts.append(_predict(name, inputs[0], outputs[0], graph.notes.get("arena_bytes", 0)))
    upper = name.upper()
    body = "\n".join(parts)
    return f"""\
/* Floats to the codes of {name} and back. Made by butterflyc; do not edit. */
#ifndef BUTTERFLYC_{upper}_FLOAT_H
#define BUTTERFLYC_{upper}_FLOAT_H

#include <stdint.h>

#include "{name}.h"

{body}
#endif
"""


def _port(text: str, name: str, kind: str, place: int, type: Type) -> str:
    words = {
        "NAME": name,
        "PLACE": str(place),
        "TYPE": C_TYPES[type.dtype],
        "SIZE": str(type.size),
        "SCALE": f"{name.upper()}_{kind}{place}_SCALE",
        "LIMIT": str(LIMITS[type.dtype]),
    }
    for word, meaning in words.items():
        text = text.replace(f"@{word}@", meaning)
    return text


def _predict(name: str, given: Type, found: Type, arena: object) -> str:
    """The call with floats in place of codes, which lie behind the model's own working memory."""
    assert isinstance(arena, int), "a planned graph says how large its arena is"
    upper = name.upper()
    size = arena
    before, after = [], []
    source, target = C_TYPES[given.dtype], C_TYPES[found.dtype]
    taken, made = "in", "out"
    if takes_codes(given):
        size = _aligned(size)
        before.append(f"{source} *const taken = ({source} *)(void *)(bytes + {size});")
        before.append(f"{name}_encode_input0(in, taken);")
        size += given.bytes
        source, taken = "float", "taken"
    if takes_codes(found):
        size = _aligned(size)
        before.append(f"{target} *const made = ({target} *)(void *)(bytes + {size});")
        after.append(f"if (status == 0) {name}_decode_output0(made, out);")
        size += found.bytes
        target, made = "float", "made"
    lines = [
        "if (in == 0 || out == 0 || arena == 0) return -1;",
        f"if ((uintptr_t)arena % {ALIGNMENT} != 0) return -2;",
        "unsigned char *const bytes = (unsigned char *)arena;",
        *before,
        f"const int status = {name}_predict({taken}, {made}, arena);",
        *after,
        "return status;",
    ]
    body = "\n".join(f"    {line}" for line in lines)
    return f"""\
/* {name}_predict with floats. Its arena is larger, since it holds the codes too. */
#define {upper}_FLOAT_ARENA_BYTES {size}
static inline int {name}_predict_f32(const {source} *in, {target} *out, void *arena)
{{
{body}
}}
"""


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
