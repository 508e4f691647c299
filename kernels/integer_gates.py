"""Integer mode's quotients, and curves of 16 bits by a table of knots."""

from __future__ import annotations

from math import prod
from typing import Any

from .elements import broadcast_strides, merge, nest, offset, row_major
from .integer import buffers, clipped, is_plain, once, rounded_shift, wide
from .lanes import Lanes
from .record import Kernel, Spec
from .tir import T, function, loop, store


def magnitude(value: Any) -> Any:
    return once(T.max(value, T.int32(0) - value))


def divide(spec: Spec, lanes: Lanes, name: str) -> Any:
    shape = spec.results[0].shape
    steps = [broadcast_strides(operand.shape, shape) for operand in spec.operands]
    sizes, columns = merge(shape, *steps, row_major(shape))
    zero = T.int32(0)
    with function(name, buffers(spec), spec.open) as f, nest(sizes) as indices:
        factor = T.shift_left(T.int32(1), f.number(spec, "shift"))
        x, other, y = f.buffers
        places = [offset(indices, column, zero) for column in columns]
        a, b = once(wide(x[places[0]])), once(wide(other[places[1]]))
        below = magnitude(b)
        above = magnitude(a) * factor + T.shift_right(below, T.int32(1))
        quotient = once(T.truncdiv(above, T.max(below, T.int32(1))))
        # The signs differ where the exclusive or of all bits is negative.
        turned = T.Select(T.bitwise_xor(a, b) < zero, zero - quotient, quotient)
        store(y, clipped(lanes, turned, "i16"), places[2])
    return f.result


def interpolate(spec: Spec, lanes: Lanes, name: str) -> Any:
    with function(name, buffers(spec)) as f, loop("i", prod(spec.results[0].shape)) as i:
        x, table, y = f.buffers
        place = once(wide(x[i]) + T.int32(1 << 15))
        knot = once(T.shift_right(place, T.int32(8)))
        low = once(wide(table[knot]))
        rise = (wide(table[knot + 1]) - low) * T.bitwise_and(place, T.int32(255))
        store(y, T.Cast("int16", low + rounded_shift(rise, 8)), i)
    return f.result


BUILD = {"integer_divide": divide, "interpolate": interpolate}


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    return BUILD[spec.op](spec, lanes, name)


def cost(spec: Spec, lanes: Lanes) -> float:
    return 12.0 * prod(spec.results[0].shape)


KERNEL = Kernel(
    "integer_gates",
    tuple(BUILD),
    lambda spec, lanes: is_plain(spec),
    build,
    cost,
    numbers=("shift",),
)
