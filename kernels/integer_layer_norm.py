"""``integer_layer_norm``: rows over their length, by a square root in integers and one division."""

from __future__ import annotations

from math import prod
from typing import Any

from .elements import parameters
from .integer import (
    bit_length,
    clipped,
    is_plain,
    once,
    rounded_shift,
    square_root,
    wide,
)
from .integer_numbers import EPS_BITS, LENGTH_BITS, UNIT_BITS, norm_bits
from .lanes import Lanes
from .record import Kernel, Spec
from .tir import Registers, T, function, store


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    x_type = spec.operands[0]
    width = x_type.shape[-1]
    zero = T.int32(0)
    with function(name, parameters(spec), spec.open) as f, T.serial(prod(x_type.shape[:-1])) as row:
        x, gain, bias, y = f.buffers
        total, largest, squares = (Registers(1, 1, "int32") for _ in range(3))
        total[0], largest[0] = zero, zero
        with T.serial(width) as i:
            total[0] = total[0] + wide(x[row * width + i])

        def apart(i: Any) -> Any:
            return wide(x[row * width + i]) * T.int32(width) - total[0]

        with T.serial(width) as i:
            value = once(apart(i))
            largest[0] = T.max(largest[0], T.max(value, zero - value))
        eps, eps_shift = f.number(spec, "eps"), f.number(spec, "eps_shift")
        bits = once(bit_length(largest[0]) - T.int32(norm_bits(width)))
        drop = once(T.max(bits, eps_shift))
        lower, higher = once(T.max(drop, zero)), once(T.max(zero - drop, zero))

        def part(i: Any) -> Any:
            return once(rounded_shift(apart(i), lower) * T.shift_left(T.int32(1), higher))

        behind = once(T.min(drop - eps_shift, T.int32(EPS_BITS + 1)))
        least = once(rounded_shift(eps, behind))
        squares[0] = least * least
        with T.serial(width) as i:
            value = part(i)
            squares[0] = squares[0] + value * value
        length = once(T.max(square_root(squares[0]), T.int32(1)))
        inverse = once(T.truncdiv(T.int32(1 << LENGTH_BITS), length))
        with T.serial(width) as i:
            unit = once(rounded_shift(part(i) * inverse, LENGTH_BITS - UNIT_BITS))
            scaled = once(unit * wide(gain[i]) + bias[i])
            code = rounded_shift(scaled, f.number(spec, "shift"))
            store(y, clipped(lanes, code, "i8"), row * width + i)
    return f.result


def cost(spec: Spec, lanes: Lanes) -> float:
    return 30.0 * prod(spec.operands[0].shape)


KERNEL = Kernel(
    "integer_layer_norm",
    ("integer_layer_norm",),
    lambda spec, lanes: is_plain(spec),
    build,
    cost,
    numbers=("shift", "eps", "eps_shift"),
)
