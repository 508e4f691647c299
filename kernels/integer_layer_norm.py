"""``integer_layer_norm``: rows over their length, by a square root in integers and one division."""

from __future__ import annotations

from math import prod
from typing import Any

from .integer import (
    bit_length,
    buffers,
    clipped,
    is_plain,
    number,
    once,
    rounded_shift,
    square_root,
    wide,
)
from .integer_numbers import EPS_BITS, LENGTH_BITS, UNIT_BITS, norm_bits
from .lanes import Lanes
from .record import Kernel, Spec
from .tir import T, function, loop, store


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    x_type = spec.operands[0]
    width = x_type.shape[-1]
    zero = T.int32(0)
    rows = prod(x_type.shape[:-1])
    with function(name, buffers(spec), spec.open) as f, loop("row", rows) as row:
        x, gain, bias, y = f.buffers
        total, largest = number("total"), number("largest")
        with loop("i", width) as i:
            total[0] = total[0] + wide(x[row * width + i])

        def apart(i: Any) -> Any:
            return wide(x[row * width + i]) * T.int32(width) - total[0]

        with loop("i", width) as i:
            value = once(apart(i), "apart")
            largest[0] = T.max(largest[0], T.max(value, zero - value))
        eps, eps_shift = f.number(spec, "eps"), f.number(spec, "eps_shift")
        bits = once(bit_length(largest[0]) - T.int32(norm_bits(width)), "bits")
        drop = once(T.max(bits, eps_shift), "drop")
        lower = once(T.max(drop, zero), "lower")
        higher = once(T.max(zero - drop, zero), "higher")

        def part(i: Any) -> Any:
            raised = rounded_shift(apart(i), lower) * T.shift_left(T.int32(1), higher)
            return once(raised, "part")

        behind = once(T.min(drop - eps_shift, T.int32(EPS_BITS + 1)), "behind")
        least = once(rounded_shift(eps, behind), "least")
        squares = number("squares", least * least)
        with loop("i", width) as i:
            value = part(i)
            squares[0] = squares[0] + value * value
        length = once(T.max(square_root(squares[0]), T.int32(1)), "length")
        inverse = once(T.truncdiv(T.int32(1 << LENGTH_BITS), length), "inverse")
        with loop("i", width) as i:
            unit = once(rounded_shift(part(i) * inverse, LENGTH_BITS - UNIT_BITS), "unit")
            scaled = once(unit * wide(gain[i]) + bias[i], "scaled")
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
