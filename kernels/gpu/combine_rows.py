"""Behind a product of the library: scale, bias, activation, rotation, gate and sum of rows.

With it comes the way that every GPU can go: a product of the library on either side of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from ..lanes import Lanes
from ..record import Kernel, Spec, Tensor
from . import rotate_rows
from .activations import activate
from .common import join_members, split_members, turn
from .cost import down_seconds, moved_seconds, product_seconds, rotation_seconds
from .launch import Gpu, Launch, Plan, Product, Step, Unpack
from .layer import Layer, divided, layer_of, number, pointer, power_of_two, serves

# Libraries want rows of multiples of 16 bytes.
MULTIPLE = 16
LAYOUT = f"crumbs{MULTIPLE}x{MULTIPLE}x0"
# Numbers of a program, and outputs of it at most.
NUMBERS = 1024
MOST_COLUMNS = 256


@triton.jit
def combine_rows(
    sums: Any,
    row_scales: Any,
    scale: Any,
    bias: Any,
    gates: Any,
    experts: Any,
    pairs: Any,
    out: Any,
    T: Any,
    F: Any,
    WIDTH: tl.constexpr,
    CHOSEN: tl.constexpr,
    CODES: tl.constexpr,
    SCALES: tl.constexpr,
    BIASED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LAST: tl.constexpr,
    ORDER: tl.constexpr,
    FAST: tl.constexpr,
    ASM: tl.constexpr,
    BT: tl.constexpr,
    BG: tl.constexpr,
) -> Any:
    """out [T, F] of sums [T * CHOSEN, WIDTH]."""
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    group = tl.program_id(1) * BG + tl.arange(0, BG)
    column = tl.program_id(1) * (4 * BG) + tl.arange(0, 4 * BG)
    there = token < T
    within = column < F
    mask = there[:, None] & within[None, :]
    turned = there[:, None] & (group * 4 < F)[None, :]
    if SCALES:
        factor = tl.load(scale + column, mask=within, other=0.0)
    else:
        factor = tl.full((4 * BG,), 1.0, tl.float32) * tl.load(scale)
    y0 = tl.full((BT, BG), 0.0, tl.float32)
    y1, y2, y3 = y0, y0, y0
    for slot in tl.static_range(CHOSEN):
        row = token.to(tl.int64) * CHOSEN + slot
        u = tl.load(sums + row[:, None] * WIDTH + column[None, :], mask=mask, other=0).to(
            tl.float32
        )
        if CODES:
            of_row = tl.load(row_scales + row, mask=there, other=0.0)
            u = u * (of_row[:, None] * factor[None, :])
        else:
            u = u * factor[None, :]
        if BIASED:
            u += tl.load(bias + column, mask=within, other=0.0)[None, :]
        if not LAST:
            u = activate(u, ACTIVATION, FAST, ASM)
        u0, u1, u2, u3 = split_members(u, BT, BG)
        expert = tl.load(experts + row, mask=there, other=0).to(tl.int32)
        first = (expert[:, None] * (F // 4) + group[None, :]) * 4
        u0, u1, u2, u3 = turn(u0, u1, u2, u3, pairs, first, turned, ORDER)
        if LAST:
            u0 = activate(u0, ACTIVATION, FAST, ASM)
            u1 = activate(u1, ACTIVATION, FAST, ASM)
            u2 = activate(u2, ACTIVATION, FAST, ASM)
            u3 = activate(u3, ACTIVATION, FAST, ASM)
        gate = tl.load(gates + row, mask=there, other=0.0)[:, None]
        y0 += gate * u0
        y1 += gate * u1
        y2 += gate * u2
        y3 += gate * u3
    y = join_members(y0, y1, y2, y3, BT, BG).to(out.dtype.element_ty)
    tl.store(out + token.to(tl.int64)[:, None] * F + column[None, :], y, mask=mask)


def launch(layer: Layer, sums: str, scales: str, width: int, out: str) -> Launch:
    """From the buffers ``sums`` [R, width] and ``scales`` [R] into ``out`` [T, F]."""
    columns = min(power_of_two(layer.outputs), MOST_COLUMNS)
    height = min(NUMBERS // columns, power_of_two(layer.tokens))
    arguments = {
        "sums": pointer(layer.sum_dtype, sums),
        "row_scales": layer.row_scales(scales),
        **{name: layer.buffer(name) for name in ("scale", "bias", "gates", "experts")},
        "pairs": layer.buffer("pairs_out"),
        "out": pointer(layer.last.dtype, out),
        "T": number(layer.tokens),
        "F": number(layer.outputs),
    }
    constants = {
        "WIDTH": width,
        "CHOSEN": layer.chosen,
        "CODES": layer.codes,
        **layer.flags,
        "BT": height,
        "BG": columns // 4,
    }
    grid = (divided(layer.tokens, height), divided(layer.outputs, columns), 1)
    return Launch(
        "combine_rows", "combine_rows", tuple(arguments.items()), tuple(constants.items()), grid
    )


def padded(size: int) -> int:
    return divided(size, MULTIPLE) * MULTIPLE


def supports(spec: Spec, gpu: Lanes) -> bool:
    return (
        isinstance(gpu, Gpu) and serves(spec, gpu, LAYOUT) and rotate_rows.supports(layer_of(spec))
    )


def layouts(spec: Spec, gpu: Lanes) -> Mapping[int, str]:
    return {2: LAYOUT}


def scratch(spec: Spec, gpu: Lanes) -> tuple[Tensor, ...]:
    """Rotated rows, their scales, what the product gives, and what w_down gets."""
    layer = layer_of(spec)
    width, outputs = padded(layer.channels), padded(layer.outputs)
    tensors = [
        Tensor(layer.row_dtype, (layer.rows, width)),
        Tensor("f32", (layer.rows,)),
        Tensor(layer.sum_dtype, (layer.rows, outputs)),
    ]
    return (*tensors, layer.last) if layer.down else tuple(tensors)


def build(spec: Spec, gpu: Lanes, name: str) -> Plan:
    assert isinstance(gpu, Gpu), "plans are for GPUs"
    layer = layer_of(spec)
    width, outputs = padded(layer.channels), padded(layer.outputs)
    out = "scratch3" if layer.down else "y"
    steps: list[Step] = [
        rotate_rows.launch(layer, gpu, "scratch0", "scratch1", width, planar=False),
        Product("scratch0", "dense", "scratch2"),
        launch(layer, "scratch2", "scratch1", outputs, out),
    ]
    if layer.down:
        steps.append(Product(out, "w_down", "y"))
    return Plan(tuple(steps), (Unpack("w", "dense", (outputs, width), layer.row_dtype),))


def cost(spec: Spec, gpu: Lanes) -> float:
    assert isinstance(gpu, Gpu), "costs are of GPUs"
    layer = layer_of(spec)
    return rotation_seconds(layer, gpu) + sum(
        (
            product_seconds(layer, gpu, layer.rows, layer.outputs, layer.channels, layer.row_dtype),
            moved_seconds(gpu, layer.rows * layer.outputs * 4 + layer.last_bytes),
            down_seconds(layer, gpu),
        )
    )


KERNEL = Kernel("gpu_library", ("butterfly_layer",), supports, build, cost, scratch, layouts)
