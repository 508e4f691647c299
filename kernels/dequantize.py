"""``dequantize``: integer sums as floats, times (row scale * scale), in that order of roundings."""

from __future__ import annotations

from math import prod
from typing import Any

from .lanes import Lanes
from .record import Kernel, Spec, Tensor
from .tir import (
    T,
    broadcast,
    each_vector,
    function,
    load_lanes,
    rows_of,
    span,
    store,
    store_lanes,
)


def supports(spec: Spec, lanes: Lanes) -> bool:
    sums, row_scale, scale = spec.operands
    return (
        spec.op == "dequantize"
        and row_scale.dtype == scale.dtype == "f32"
        and prod(sums.shape) > 0
        and sums.layout is None
    )


def cost(spec: Spec, lanes: Lanes) -> float:
    return prod(spec.operands[0].shape) / lanes.float_lanes


def scale_vector(scale: Any, per_output: bool, start: Any, valid: int, width: int) -> Any:
    """The scales of ``width`` outputs from ``start``: one for all, or one each."""
    if not per_output:
        return broadcast(scale[0], width)
    return load_lanes(lambda i, n: scale[span(i, n)], start, valid, width, T.float32(0))


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    sums_type, _, scale_type = spec.operands
    width, outputs = lanes.float_lanes, sums_type.shape[-1]
    rows = prod(sums_type.shape[:-1])
    parameters = {
        "sums": rows_of(sums_type),
        "row_scale": Tensor("f32", (rows,)),
        "scale": scale_type,
        "y": rows_of(spec.results[0]),
    }
    with function(name, parameters) as f:
        sums, row_scale, scale, y = f.buffers
        with T.serial(rows) as row:
            for start, valid in each_vector(outputs, width):
                total = load_lanes(
                    lambda i, n: sums[row, span(i, n)], start, valid, width, T.int32(0)
                )
                scales = scale_vector(scale, bool(scale_type.shape), start, valid, width)
                value = lanes.as_float(total) * (broadcast(row_scale[row], width) * scales)
                store_lanes(
                    lambda v, i, n: store(y, v, row, span(i, n)), value, start, valid, width
                )
    return f.result


KERNEL = Kernel("dequantize", ("dequantize",), supports, build, cost)
