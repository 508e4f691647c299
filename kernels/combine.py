"""``combine``: the sum over the k chosen experts of gate * value."""

from __future__ import annotations

from math import prod
from typing import Any

from .lanes import Lanes
from .record import Kernel, Spec, Tensor
from .tir import (
    Registers,
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
    values, gates = spec.operands
    return (
        spec.op == "combine"
        and values.dtype == gates.dtype == "f32"
        and prod(values.shape) > 0
        and values.layout is None
    )


def cost(spec: Spec, lanes: Lanes) -> float:
    return prod(spec.operands[0].shape) / lanes.float_lanes


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    values_type, _ = spec.operands
    *tokens, chosen, channels = values_type.shape
    width = lanes.float_lanes
    parameters = {
        "values": Tensor("f32", (prod(tokens), chosen, channels)),
        "gates": Tensor("f32", (prod(tokens), chosen)),
        "y": rows_of(spec.results[0]),
    }
    with function(name, parameters) as f:
        values, gates, y = f.buffers
        with T.serial(prod(tokens)) as token:
            for start, valid in each_vector(channels, width):
                total = Registers(1, width)
                for i in range(chosen):

                    def read(c: Any, n: int, i: int = i) -> Any:
                        return values[token, i, span(c, n)]

                    value = load_lanes(read, start, valid, width, T.float32(0))
                    gate = broadcast(gates[token, i], width)
                    total[0] = lanes.multiply_add(total[0], value, gate) if i else value * gate
                store_lanes(
                    lambda v, c, n: store(y, v, token, span(c, n)), total[0], start, valid, width
                )
    return f.result


KERNEL = Kernel("combine", ("combine",), supports, build, cost)
