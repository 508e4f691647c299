"""``softmax`` over the last axis: exp(x - max) / sum, for rows of any length.

A row that holds NaN or infinity, or nothing but -infinity, becomes NaN by the arithmetic itself:
infinity less infinity is NaN, and so is the sum, by which every element is divided.
"""

from __future__ import annotations

import math
from math import prod
from operator import add
from typing import Any

from .lanes import Lanes
from .pointwise_math import LOG2_E, exp2
from .record import Kernel, Spec
from .tir import (
    Registers,
    T,
    broadcast,
    constant,
    each_vector,
    function,
    let,
    load_lanes,
    mask_lanes,
    reduce_lanes,
    rows_of,
    span,
    store,
    store_lanes,
)

# The score of what does not count: e**LOWEST is 0.
LOWEST = -math.inf


def supports(spec: Spec, lanes: Lanes) -> bool:
    (x,) = spec.operands
    axis = dict(spec.attributes).get("axis", -1)
    return (
        spec.op == "softmax"
        and x.dtype == "f32"
        and x.layout is None
        and prod(x.shape) > 0
        and axis in (-1, len(x.shape) - 1)
    )


def cost(spec: Spec, lanes: Lanes) -> float:
    return 20 * prod(spec.operands[0].shape) / lanes.float_lanes


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    x_type = rows_of(spec.operands[0])
    rows, size = x_type.shape
    width = lanes.float_lanes
    with function(name, {"x": x_type, "y": x_type}) as f:
        x, y = f.buffers
        with T.serial(rows) as row:

            def scores(first: Any, valid: int) -> Any:
                return load_lanes(
                    lambda i, n: x[row, span(i, n)], first, valid, width, T.float32(LOWEST)
                )

            def keep(value: Any, first: Any, valid: int) -> None:
                store_lanes(
                    lambda part, at, n: store(y, part, row, span(at, n)),
                    value,
                    first,
                    valid,
                    width,
                )

            inverse = let(T.float32(1) / exponentials(lanes, size, 1.0, scores, keep), 1)

            for first, valid in each_vector(size, width):
                value = load_lanes(
                    lambda i, n: y[row, span(i, n)], first, valid, width, T.float32(0)
                )
                keep(value * broadcast(inverse, width), first, valid)
    return f.result


def exponentials(lanes: Lanes, size: int, scale: float, scores: Any, keep: Any) -> Any:
    """Store e**(scale * (score - max)) of one row, zero beyond ``size``; return their sum.

    ``scores(first, valid)`` reads a vector, with LOWEST in the lanes beyond ``valid``;
    ``keep(vector, first, valid)`` stores one. The sum is a scalar, at least 1 or NaN. ``scale`` is
    positive.
    """
    width = lanes.float_lanes
    largest = Registers(1, width)
    largest[0] = constant(LOWEST, width)

    for first, valid in each_vector(size, width):
        largest[0] = lanes.maximum(largest[0], let(scores(first, valid), width))
    top = let(reduce_lanes(largest[0], width, lanes.maximum), 1)
    total = Registers(1, width)
    total[0] = constant(0.0, width)
    for first, valid in each_vector(size, width):
        below = (scores(first, valid) - broadcast(top, width)) * constant(scale * LOG2_E, width)
        value = let(mask_lanes(exp2(lanes, below), valid, width), width)
        total[0] = total[0] + value
        keep(value, first, valid)
    return reduce_lanes(total[0], width, add)


KERNEL = Kernel("softmax", ("softmax",), supports, build, cost)
