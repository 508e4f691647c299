"""Integer mode: what gates need beyond `integer`, quotients and curves of 16 bits.

As there: every rounding is defined here, and nothing leaves 32 bits.
"""

from __future__ import annotations

import numpy as np

from ....kernels.integer_numbers import KNOTS
from ..types import Type
from .integer import clipped, fits, rounded_shift
from .table import REQUIRED, broadcast_shapes, op, want

Array = np.ndarray


def integer_divide(a: Type, b: Type, shift: int) -> Type:
    want(a.dtype == b.dtype == "i16", f"needs i16, got {a} and {b}")
    want(0 <= shift <= 15, f"a shift of {shift}, of 0 to 15")
    return Type("i16", broadcast_shapes(a.shape, b.shape))


def integer_divide_meaning(a: Array, b: Array, shift: int) -> Array:
    above, below = np.abs(a.astype(np.int64)) << shift, np.abs(b.astype(np.int64))
    quotient = fits(above + below // 2) // np.maximum(below, 1)
    return clipped(np.where((a < 0) != (b < 0), -quotient, quotient), "i16")


def interpolate(x: Type, table: Type) -> Type:
    want(x.dtype == "i16", f"needs i16, got {x}")
    fit = table.dtype == "i16" and table.shape == (KNOTS,)
    want(fit, f"the table is {table}, not i16[{KNOTS}]")
    return Type("i16", x.shape)


def interpolate_meaning(x: Array, table: Array) -> Array:
    place = x.astype(np.int64) + (1 << 15)
    knot, part = place >> 8, place & 255
    low, high = table[knot].astype(np.int64), table[knot + 1].astype(np.int64)
    return low + rounded_shift((high - low) * part, 8)


OPS = [
    op(
        "integer_divide",
        "a b",
        integer_divide,
        integer_divide_meaning,
        "a * 2**shift / b to the nearest, halves away from zero, clipped; by 0 as by 1",
        shift=REQUIRED,
    ),
    op(
        "interpolate",
        "x table",
        interpolate,
        interpolate_meaning,
        "the line between two neighbours of 257 knots, one at each 256th code, from -2**15 on",
    ),
]
