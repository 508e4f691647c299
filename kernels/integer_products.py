"""Integer mode's products: rows of codes by a matrix, rotations, and the sum over experts."""

from __future__ import annotations

from math import prod
from typing import Any

from .elements import broadcast_strides, nest, offset, parameters
from .integer import clipped, is_plain, once, requantized, rounded_shift, wide
from .lanes import Lanes
from .record import Kernel, Spec
from .take import position
from .tir import Registers, T, function, row_blocks, store


def linear(spec: Spec, lanes: Lanes, name: str) -> Any:
    x_type, w_type, *_ = spec.operands
    outputs, depth = w_type.shape
    tile_rows, tile_outputs = spec.parameter("rows", 2), spec.parameter("outputs", 4)
    with function(name, parameters(spec), spec.open) as f:
        x, w, *others, y = f.buffers
        added, others = others[:1], others[1:]

        def finished(total: Any, row: Any, output: Any) -> Any:
            """A sum as it is stored: itself, or a code, added to the residual if there is one."""
            if spec.op == "integer_linear":
                return total
            multiplier, *residual = others
            by_row = len(spec.operands[3].shape) > 0
            code = requantized(
                f, spec, total, multiplier[output if by_row else 0], spec.attribute("dtype")
            )
            if not residual:
                return code
            return clipped(wide(residual[0][row * outputs + output]) + wide(code), "i16")

        def tile(row: Any, rows: int, output: Any, count: int) -> None:
            """``rows`` times ``count`` sums at once: each weight and each code is loaded once."""
            sums = Registers(rows * count, 1, "int32")
            for i in range(rows * count):
                sums[i] = added[0][output + i % count] if added else T.int32(0)
            with T.serial(depth) as k:
                codes = [once(wide(x[(row + r) * depth + k])) for r in range(rows)]
                for n in range(count):
                    weight = once(wide(w[(output + n) * depth + k]))
                    for r in range(rows):
                        sums[r * count + n] = sums[r * count + n] + codes[r] * weight
            for i in range(rows * count):
                at, column = row + i // count, output + i % count
                store(y, finished(sums[i], at, column), at * outputs + column)

        for first_row, row_turns, rows in row_blocks(prod(x_type.shape[:-1]), tile_rows):
            for first, turns, count in row_blocks(outputs, tile_outputs):
                with T.serial(row_turns) as row, T.serial(turns) as turn:
                    tile(first_row + row * rows, rows, first + turn * count, count)
    return f.result


def rotate(spec: Spec, lanes: Lanes, name: str) -> Any:
    x_type, blocks_type, experts_type = spec.operands
    experts, groups, size, _ = blocks_type.shape
    width = groups * size
    rows = experts_type.shape
    steps = broadcast_strides(x_type.shape[:-1], rows)
    with function(name, parameters(spec), spec.open) as f, nest(rows) as indices:
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
                turned = clipped(rounded_shift(total, f.number(spec, "shift")), "i8")
                store(y, turned, row * width + group * size + i)
    return f.result


def combine(spec: Spec, lanes: Lanes, name: str) -> Any:
    *tokens, chosen, channels = spec.operands[0].shape
    by_channel = spec.op == "quantized_combine" and len(spec.operands[2].shape) > 0
    sizes = prod(tokens), channels
    with function(name, parameters(spec), spec.open) as f, nest(sizes) as (token, c):
        values, gates, *multiplier, y = f.buffers
        total: Any = T.int32(0)
        for i in range(chosen):
            value = values[(token * chosen + i) * channels + c]
            total = total + wide(value) * wide(gates[token * chosen + i])
        if multiplier:
            factor = multiplier[0][c if by_channel else 0]
            total = requantized(f, spec, total, factor, spec.attribute("dtype"))
        store(y, total, token * channels + c)
    return f.result


BUILD = {
    "integer_linear": linear,
    "quantized_linear": linear,
    "integer_rotate": rotate,
    "integer_combine": combine,
    "quantized_combine": combine,
}


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    return BUILD[spec.op](spec, lanes, name)


def cost(spec: Spec, lanes: Lanes) -> float:
    inner = 1 if spec.op.endswith("combine") else spec.operands[1].shape[-1]
    return 4.0 * prod(spec.results[0].shape) * inner


def supports(spec: Spec, lanes: Lanes) -> bool:
    return is_plain(spec)


KERNEL = Kernel("integer_products", tuple(BUILD), supports, build, cost, numbers=("drop", "shift"))
