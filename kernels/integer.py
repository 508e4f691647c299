"""Arithmetic of integer mode in TIR: int32 throughout, as the meanings of its ops define it.

No sum or product leaves 32 bits: whoever chose the multipliers saw to that.
"""

from __future__ import annotations

from typing import Any

from .elements import held
from .integer_numbers import LIMITS
from .lanes import Lanes
from .record import Spec, Tensor
from .tir import DTYPES, Function, Registers, T, loop

# What the ops of integer mode call their operands.
OPERANDS = {
    "integer_attention": "q k v octave",
    "integer_combine": "values gates",
    "integer_divide": "a b",
    "integer_layer_norm": "x gain bias",
    "integer_linear": "x w bias",
    "integer_mul": "a b",
    "integer_rotate": "x blocks experts",
    "integer_softmax": "x octave",
    "integer_turn": "x angles experts table",
    "interpolate": "x table",
    "lookup": "x table",
    "quantized_combine": "values gates multiplier",
    "quantized_linear": "x w bias multiplier residual",
    "quantized_ternary": "codes w multiplier table",
    "requantize": "x multiplier",
    "saturating_add": "a b",
    "ternary_dot": "codes w",
}


def wide(value: Any) -> Any:
    """A loaded code as int32."""
    return T.Cast("int32", value)


def once(value: Any, name: str | None = None) -> Any:
    """An int32 that is computed once; printed C keeps the name."""
    made = Registers(1, 1, "int32", name)
    made[0] = value
    return made[0]


def number(name: str, value: Any = 0) -> Registers:
    """One int32 that changes, and what it is at first."""
    made = Registers(1, 1, "int32", name)
    made[0] = T.int32(value) if isinstance(value, int) else value
    return made


def buffers(spec: Spec) -> dict[str, Tensor]:
    """Every operand and result, flat, under the names that the op gives its operands."""
    names = OPERANDS[spec.op].split()[: len(spec.operands)]
    found = dict(zip(names, map(held, spec.operands), strict=True))
    return found | {"y": held(spec.results[0])}


def rounded_shift(value: Any, shift: Any) -> Any:
    """value / 2**shift to the nearest integer, halves upwards; a shift may be computed."""
    if not isinstance(shift, int):
        half = T.shift_right(T.shift_left(T.int32(1), shift), T.int32(1))
        return T.shift_right(value + half, shift)
    if shift == 0:
        return value
    return T.shift_right(value + T.int32(1 << (shift - 1)), T.int32(shift))


def clipped(lanes: Lanes, value: Any, dtype: str) -> Any:
    """A code of ``dtype`` as it is stored."""
    return T.Cast(DTYPES[dtype], lanes.clip(value, LIMITS[dtype]))


def bit_length(value: Any) -> Any:
    """How many bits a number of at least 0 has."""
    rest, bits = number("rest", value), number("bits")
    for step in (16, 8, 4, 2, 1):
        high = once(T.shift_right(rest[0], T.int32(step)), "high")
        bits[0] = bits[0] + T.Select(high > T.int32(0), T.int32(step), T.int32(0))
        rest[0] = T.Select(high > T.int32(0), high, rest[0])
    return once(bits[0] + rest[0], "length")


def square_root(value: Any) -> Any:
    """The largest integer whose square is at most ``value``, bit by bit (Woo 1985)."""
    rest, root = number("rest", value), number("root")
    with loop("i", 16) as i:
        bit = once(T.shift_left(T.int32(1), T.int32(30) - i * 2), "bit")
        tried = once(root[0] + bit, "tried")
        fits = once(T.Select(rest[0] >= tried, T.int32(1), T.int32(0)), "fits")
        rest[0] = rest[0] - T.Select(fits > T.int32(0), tried, T.int32(0))
        half = T.shift_right(root[0], T.int32(1))
        root[0] = half + T.Select(fits > T.int32(0), bit, T.int32(0))
    return root[0]


def requantized(
    f: Function, lanes: Lanes, spec: Spec, value: Any, multiplier: Any, dtype: str
) -> Any:
    """A sum as a code of ``dtype``, by the shifts of ``spec`` and a loaded multiplier."""
    dropped = rounded_shift(value, f.number(spec, "drop"))
    scaled = once(dropped * wide(multiplier), "scaled")
    return clipped(lanes, rounded_shift(scaled, f.number(spec, "shift")), dtype)


def is_plain(spec: Spec) -> bool:
    """Whether nothing is packed, and nothing is empty."""
    tensors = (*spec.operands, *spec.results)
    return all(t.layout is None and 0 not in t.shape for t in tensors)
