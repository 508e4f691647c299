"""Integer mode's products: rows of codes by a matrix, rotations, and the sum over experts."""

from __future__ import annotations

from math import prod
from typing import Any

from .elements import broadcast_strides, nest, offset, parameters
from .integer import clipped, is_plain, rounded_shift, wide
from .lanes import Lanes
from .record import Kernel, Spec
from .take import position
from .tir import Registers, T, function, store


def linear(spec: Spec, lanes: Lanes, name: str) -> Any:
    x_type, w_type, *bias = spec.operands
    outputs, depth = w_type.shape
    rows = prod(x_type.shape[:-1])
    with function(name, parameters(spec)) as f, nest((rows, outputs)) as (row, n):
        x, w, *added, y = f.buffers
        total = Registers(1, 1, "int32")
        total[0] = added[0][n] if bias else T.int32(0)
        with T.serial(depth) as k:
            total[0] = total[0] + wide(x[row * depth + k]) * wide(w[n * depth + k])
        store(y, total[0], row * outputs + n)
    return f.result


def rotate(spec: Spec, lanes: Lanes, name: str) -> Any:
    x_type, blocks_type, experts_type = spec.operands
    experts, groups, size, _ = blocks_type.shape
    width = groups * size
    rows = experts_type.shape
    steps = broadcast_strides(x_type.shape[:-1], rows)
    with function(name, parameters(spec)) as f, nest(rows) as indices:
        x, blocks, chosen, y = f.buffers
        row = T.int32(0)
        for index, count in zip(indices, rows, strict=True):
            row = row * count + index
        source = offset(indices, steps, T.int32(0)) * width
        expert = position(chosen[row], experts_type.dtype, experts)
        with T.serial(groups) as group:
            for i in range(size):
                at = ((expert * groups + group) * size + i) * size
                total: Any = T.int32(0)
                for j in range(size):
                    total = total + wide(blocks[at + j]) * wide(x[source + group * size + j])
                turned = clipped(rounded_shift(total, spec.attribute("shift")), "i8")
                store(y, turned, row * width + group * size + i)
    return f.result


def combine(spec: Spec, lanes: Lanes, name: str) -> Any:
    *tokens, chosen, channels = spec.operands[0].shape
    with function(name, parameters(spec)) as f, nest((prod(tokens), channels)) as (token, c):
        values, gates, y = f.buffers
        total: Any = T.int32(0)
        for i in range(chosen):
            value = values[(token * chosen + i) * channels + c]
            total = total + wide(value) * wide(gates[token * chosen + i])
        store(y, total, token * channels + c)
    return f.result


BUILD = {"integer_linear": linear, "integer_rotate": rotate, "integer_combine": combine}


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    return BUILD[spec.op](spec, lanes, name)


def cost(spec: Spec, lanes: Lanes) -> float:
    inner = spec.operands[1].shape[-1] if spec.op != "integer_combine" else 1
    return 4.0 * prod(spec.results[0].shape) * inner


def supports(spec: Spec, lanes: Lanes) -> bool:
    return is_plain(spec)


KERNEL = Kernel("integer_products", tuple(BUILD), supports, build, cost)
