"""Integer mode: rotations by angles, which are codes of 8 or 16 bits.

As in `integer`: every rounding is defined here, and nothing leaves 32 bits. Groups of four
channels, their members, their turns and the ``order`` are those of `layer`; with two angles a
group only the first two turns are made.
"""

from __future__ import annotations

import numpy as np

from ....kernels.integer_numbers import ONE_BITS, PARTS, TURN_BITS, TURNED_BITS, turn_table
from ..types import Type
from .integer import clipped, fits, rounded_shift
from .layer import TURNED
from .table import REQUIRED, broadcast_shapes, op, want

Array = np.ndarray


def integer_turn(
    x: Type,
    angles: Type,
    experts: Type,
    table: Type,
    order: tuple[int, ...],
    multiplier: int,
    shift: int,
) -> Type:
    want(x.dtype == "i8", f"needs i8, got {x}")
    turns = angles.rank == 3 and angles.shape[2] in (2, 4) and angles.dtype in TURN_BITS
    want(turns, f"angles are {angles}, not i8 or i16 [E, groups, 2 or 4]")
    want(x.shape[-1] == 4 * angles.shape[1], f"angles {angles} do not fit {x}")
    wanted = (len(turn_table(angles.dtype)), 2)
    want(table.dtype == "i16" and table.shape == wanted, f"table {table}, not i16{list(wanted)}")
    halves = sorted(order[:4]), sorted(order[4:])
    want(halves == ([0, 1, 2, 3],) * 2, f"the order {order} is not twice 0, 1, 2, 3")
    want(0 < multiplier < 2**15 and 0 <= shift <= 30, f"multiplier {multiplier}, shift {shift}")
    rows = broadcast_shapes(x.shape[:-1], experts.shape)
    want(rows == experts.shape, f"rows of {x} do not fit experts {experts}")
    return Type("i8", (*experts.shape, x.shape[-1]))


def cosines(angles: Array, table: Array) -> tuple[Array, Array]:
    """(cos, sin) of codes of angles, in 2**-ONE_BITS."""
    codes, held = angles.astype(np.int64), table.astype(np.int64)
    if len(table) == PARTS:
        found = held[codes % PARTS]
        return found[..., 0], found[..., 1]
    coarse, fine = held[codes // PARTS % PARTS], held[PARTS + codes % PARTS]
    (c, s), (d, t) = np.moveaxis(coarse, -1, 0), np.moveaxis(fine, -1, 0)
    return rounded_shift(c * d - s * t, ONE_BITS), rounded_shift(s * d + c * t, ONE_BITS)


def integer_turn_meaning(
    x: Array,
    angles: Array,
    experts: Array,
    table: Array,
    order: tuple[int, ...],
    multiplier: int,
    shift: int,
) -> Array:
    rows = np.broadcast_to(x, (*experts.shape, x.shape[-1])).astype(np.int64)
    members = rows.reshape(*rows.shape[:-1], -1, 4)
    parts = [members[..., channel] for channel in order[:4]]
    cos, sin = cosines(angles[experts], table)
    for i in range(angles.shape[2]):
        # The first turn of a channel leaves bits below a code, the second one keeps them.
        drop = ONE_BITS - TURNED_BITS if i < 2 else ONE_BITS
        (a, b), c, s = TURNED[i], cos[..., i], sin[..., i]
        turned = c * parts[a] - s * parts[b], s * parts[a] + c * parts[b]
        parts[a], parts[b] = (rounded_shift(fits(sums), drop) for sums in turned)
    renamed = np.stack([parts[order[4:].index(channel)] for channel in range(4)], -1)
    return clipped(rounded_shift(renamed * multiplier, shift), "i8").reshape(rows.shape)


OPS = [
    op(
        "integer_turn",
        "x angles experts table",
        integer_turn,
        integer_turn_meaning,
        "each group of four codes turned by the 2 or 4 angles of the row's expert, times "
        "multiplier / 2**(shift - 7)",
        order=REQUIRED,
        multiplier=REQUIRED,
        shift=REQUIRED,
    ),
]
