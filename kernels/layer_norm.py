"""``layer_norm``: (x - mean) / sqrt(variance + eps) * weight + bias over the last axis.

Two passes over a row for its statistics: the variance is taken of the centred values, so a large
mean costs no digits.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from operator import add
from typing import Any

from .lanes import Lanes
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
    reduce_lanes,
    reduce_vectors,
    rows_of,
    span,
    store,
    store_lanes,
)

# Sums that run side by side, to hide the latency of an addition.
CHAINS = 4


def supports(spec: Spec, lanes: Lanes) -> bool:
    tensors = (*spec.operands, *spec.results)
    return spec.op == "layer_norm" and all(
        t.dtype == "f32" and t.layout is None and prod(t.shape) > 0 for t in tensors
    )


def cost(spec: Spec, lanes: Lanes) -> float:
    return 4 * prod(spec.operands[0].shape) / lanes.float_lanes


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    x_type = rows_of(spec.operands[0])
    rows, size = x_type.shape
    weight_type, bias_type = spec.operands[1:]
    types = {"x": x_type, "weight": weight_type, "bias": bias_type, "y": x_type}
    with function(name, types) as f:
        x, weight, bias, y = f.buffers
        with T.serial(rows) as row:

            def read(i: Any, n: int) -> Any:
                return x[row, span(i, n)]

            mean = let(_sum(lanes, size, read, T.float32(0), lambda v: v) * (1 / size), 1)

            def centred_square(value: Any) -> Any:
                centred = let(value - broadcast(mean, lanes.float_lanes), lanes.float_lanes)
                return centred * centred

            # What is missing from the last vector reads as the mean, and adds nothing.
            variance = _sum(lanes, size, read, mean, centred_square) * (1 / size)
            deviation = lanes.square_root(variance + T.float32(spec.attribute("eps")))
            inverse = let(T.float32(1) / deviation, 1)

            def normalise(first: Any, valid: int) -> None:
                width = lanes.float_lanes

                def parameter(buffer: Any) -> Any:
                    part = load_lanes(
                        lambda i, n: buffer[span(i, n)], first, valid, width, T.float32(0)
                    )
                    return let(part, width)

                value = load_lanes(read, first, valid, width, T.float32(0))
                scaled = (value - broadcast(mean, width)) * broadcast(inverse, width)
                store_lanes(
                    lambda part, at, n: store(y, part, row, span(at, n)),
                    lanes.multiply_add(parameter(bias), scaled, parameter(weight)),
                    first,
                    valid,
                    width,
                )

            for first, valid in each_vector(size, lanes.float_lanes):
                normalise(first, valid)
    return f.result


def _sum(
    lanes: Lanes,
    size: int,
    read: Callable[[Any, int], Any],
    fill: Any,
    term: Callable[[Any], Any],
) -> Any:
    """The sum of ``term`` over a row, as a scalar; a partial last vector is filled up."""
    width = lanes.float_lanes
    whole, rest = divmod(size, width)
    chains = max(min(CHAINS, whole), 1)
    total = Registers(chains, width)
    for c in range(chains):
        total[c] = constant(0.0, width)
    if whole // chains:
        with T.serial(whole // chains) as i:
            for c in range(chains):
                total[c] = total[c] + term(read((i * chains + c) * width, width))
    for v in range(whole // chains * chains, whole):
        total[v % chains] = total[v % chains] + term(read(v * width, width))
    if rest:
        total[0] = total[0] + term(load_lanes(read, whole * width, rest, width, fill))
    return reduce_lanes(
        let(reduce_vectors([total[c] for c in range(chains)], add), width), width, add
    )


KERNEL = Kernel("layer_norm", ("layer_norm",), supports, build, cost)
