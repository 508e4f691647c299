"""``integer_turn``: rotations by angles, whose cosines and sines are looked up.

An angle takes a quarter of what its part of a 4 x 4 block takes, and half as many products.
"""

from __future__ import annotations

from math import prod
from typing import Any

from .integer import buffers, clipped, is_plain, once, rounded_shift, wide
from .integer_numbers import ONE_BITS, PARTS, TURNED_BITS
from .integer_products import each_group
from .lanes import Lanes
from .record import Kernel, Spec
from .tir import T, function, store

# The members of a group that each of its angles turns, as the op defines it.
TURNED = ((0, 1), (2, 3), (0, 2), (1, 3))


def looked_up(table: Any, angle: Any, dtype: str) -> tuple[Any, Any]:
    """(cos, sin) of a code of an angle."""

    def pair(first: int, part: Any, names: str) -> tuple[Any, Any]:
        place = once((T.bitwise_and(part, T.int32(PARTS - 1)) + T.int32(first)) * 2, "place")
        cos, sin = (once(wide(table[place + i]), name) for i, name in enumerate(names.split()))
        return cos, sin

    if dtype == "i8":
        return pair(0, angle, "cosine sine")
    bits = PARTS.bit_length() - 1
    c, s = pair(0, T.shift_right(angle, T.int32(bits)), "coarse_cosine coarse_sine")
    d, t = pair(PARTS, angle, "fine_cosine fine_sine")
    cosine = once(rounded_shift(c * d - s * t, ONE_BITS), "cosine")
    return cosine, once(rounded_shift(s * d + c * t, ONE_BITS), "sine")


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    angles_type, order = spec.operands[1], spec.attribute("order")
    turns = angles_type.shape[2]
    with function(name, buffers(spec), spec.open) as f:
        x, angles, chosen, table, y = f.buffers
        multiplier, shift = f.number(spec, "multiplier"), f.number(spec, "shift")
        with each_group(spec, chosen) as (turned_by, start, target):
            parts = [once(wide(x[start + channel]), "code") for channel in order[:4]]
            for i, (a, b) in enumerate(TURNED[:turns]):
                angle = once(wide(angles[turned_by * turns + i]), "angle")
                c, s = looked_up(table, angle, angles_type.dtype)
                drop = ONE_BITS - TURNED_BITS if i < 2 else ONE_BITS
                sums = c * parts[a] - s * parts[b], s * parts[a] + c * parts[b]
                parts[a], parts[b] = (once(rounded_shift(each, drop), "turned") for each in sums)
            for member, channel in enumerate(order[4:]):
                code = rounded_shift(parts[member] * multiplier, shift)
                store(y, clipped(lanes, code, "i8"), target + channel)
    return f.result


def cost(spec: Spec, lanes: Lanes) -> float:
    return 3.3 * prod(spec.results[0].shape) * spec.operands[1].shape[2]


def supports(spec: Spec, lanes: Lanes) -> bool:
    return is_plain(spec)


KERNEL = Kernel(
    *("integer_turn", ("integer_turn",), supports, build, cost),
    numbers=("multiplier", "shift"),
)
