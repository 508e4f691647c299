"""Convolution of images by direct loops: right for every stride and padding, fast for none."""

from __future__ import annotations

from math import prod
from typing import Any

from .elements import nest, parameters, plain
from .lanes import Lanes
from .record import Kernel, Spec
from .tir import Registers, T, function, store


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    x, w, *bias = spec.operands
    channels, height, width = x.shape[1:]
    (down, right), padding = spec.attribute("stride"), spec.attribute("padding")
    batch, outputs, rows, columns = spec.results[0].shape
    window = w.shape[2:]
    with function(name, parameters(spec)) as f:
        source, weights, *biases, y = f.buffers
        with nest((batch, outputs, rows, columns)) as (b, n, i, j):
            total = Registers(1, 1)
            total[0] = biases[0][n] if bias else T.float32(0)
            with nest((channels, *window)) as (c, p, q):
                weight = weights[((n * channels + c) * window[0] + p) * window[1] + q]
                row, column = i * down + p - padding[0], j * right + q - padding[1]
                at = ((b * channels + c) * height + row) * width + column
                if any(padding):
                    inside = T.And(
                        T.And(row >= 0, row < height), T.And(column >= 0, column < width)
                    )
                    with T.If(inside), T.Then():
                        total[0] = total[0] + source[at] * weight
                else:
                    total[0] = total[0] + source[at] * weight
            store(y, total[0], ((b * outputs + n) * rows + i) * columns + j)
    return f.result


def supports(spec: Spec, lanes: Lanes) -> bool:
    return plain(spec) and all(t.dtype == "f32" for t in (*spec.operands, *spec.results))


def cost(spec: Spec, lanes: Lanes) -> float:
    return 4.0 * prod(spec.results[0].shape) * prod(spec.operands[1].shape[1:])


KERNEL = Kernel(name="conv2d", ops=("conv2d",), supports=supports, build=build, cost=cost)
