"""Arithmetic of integer mode in TIR: int32 throughout, as the meanings of its ops define it.

No sum or product leaves 32 bits: whoever chose the multipliers saw to that.
"""

from __future__ import annotations

from typing import Any

from .integer_numbers import LIMITS
from .lanes import Lanes
from .record import Spec
from .tir import DTYPES, Function, Registers, T, let


def wide(value: Any) -> Any:
    """A loaded code as int32."""
    return T.Cast("int32", value)


def once(value: Any) -> Any:
    """An int32 that is computed once."""
    return let(value, 1, "int32")


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
    rest, bits = Registers(1, 1, "int32"), Registers(1, 1, "int32")
    rest[0], bits[0] = value, T.int32(0)
    for step in (16, 8, 4, 2, 1):
        high = once(T.shift_right(rest[0], T.int32(step)))
        bits[0] = bits[0] + T.Select(high > T.int32(0), T.int32(step), T.int32(0))
        rest[0] = T.Select(high > T.int32(0), high, rest[0])
    return once(bits[0] + rest[0])


def square_root(value: Any) -> Any:
    """The largest integer whose square is at most ``value``, bit by bit (Woo 1985)."""
    rest, root = Registers(1, 1, "int32"), Registers(1, 1, "int32")
    rest[0], root[0] = value, T.int32(0)
    with T.serial(16) as i:
        bit = once(T.shift_left(T.int32(1), T.int32(30) - i * 2))
        tried = once(root[0] + bit)
        fits = once(T.Select(rest[0] >= tried, T.int32(1), T.int32(0)))
        rest[0] = rest[0] - T.Select(fits > T.int32(0), tried, T.int32(0))
        half = T.shift_right(root[0], T.int32(1))
        root[0] = half + T.Select(fits > T.int32(0), bit, T.int32(0))
    return root[0]


def requantized(
    f: Function, lanes: Lanes, spec: Spec, value: Any, multiplier: Any, dtype: str
) -> Any:
    """A sum as a code of ``dtype``, by the shifts of ``spec`` and a loaded multiplier."""
    dropped = rounded_shift(value, f.number(spec, "drop"))
    scaled = once(dropped * wide(multiplier))
    return clipped(lanes, rounded_shift(scaled, f.number(spec, "shift")), dtype)


def is_plain(spec: Spec) -> bool:
    """Whether nothing is packed, and nothing is empty."""
    tensors = (*spec.operands, *spec.results)
    return all(t.layout is None and 0 not in t.shape for t in tensors)
