"""Behind a product of the library: scale, bias, activation, rotation, gate and sum of rows.

With it comes the way that every GPU can go: a product of the library on either side of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from ..lanes import Lanes
from ..record import Kernel, Spec, Tensor
from . import rotate_rows
from .common import join_members
from .cost import down_seconds, library_seconds, moved_seconds, rotation_seconds
from .epilogue import chosen_of, combined, scales_of
from .launch import Gpu, Launch, Plan, Product, Step, Unpack
from .layer import Layer, divided, layer_of, number, plain, pointer, power_of_two, serves

# Libraries want rows of multiples of 16 bytes.
MULTIPLE = 16
LAYOUT = f"crumbs{MULTIPLE}x{MULTIPLE}x0"
# Numbers of a program, and outputs of it at most.
NUMBERS = 1024
MOST_COLUMNS = 256


@triton.jit
def combine_rows(
    sums: tl.tensor,
    row_scales: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    gates: tl.tensor,
    experts: tl.tensor,
    pairs: tl.tensor,
    out: tl.tensor,
    T: tl.tensor,
    F: tl.tensor,
    WIDTH: tl.tensor,
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
    BF: tl.constexpr,
) -> tl.tensor:
    """out [T, F] of sums [T * CHOSEN, WIDTH]."""
    token = tl.program_id(0) * BT + tl.arange(0, BT)
    first = tl.program_id(1) * BF
    column = first + tl.arange(0, BF)
    there = token < T
    mask = there[:, None] & (column < F)[None, :]
    y0 = tl.full((BT, BF // 4), 0.0, tl.float32)
    y1, y2, y3 = y0, y0, y0
    for slot in tl.static_range(CHOSEN):
        row = token * CHOSEN + slot
        start = sums + row.to(tl.int64)[:, None] * WIDTH
        of_row = scales_of(row_scales, row, there, CODES)
        gate, expert = chosen_of(gates, experts, row, there)
        u0, u1, u2, u3 = combined(
            tl.load(start + column[None, :], mask=mask, other=0),
            of_row, scale, bias, gate, expert, pairs, there, first, F,
            1.0, CODES, SCALES, BIASED, ACTIVATION, LAST, ORDER, FAST, ASM, False, 1, BT, BF,
        )  # fmt: skip
        y0 += u0
        y1 += u1
        y2 += u2
        y3 += u3
    y = join_members(y0, y1, y2, y3, BT, BF // 4).to(out.dtype.element_ty)
    tl.store(out + token.to(tl.int64)[:, None] * F + column[None, :], y, mask=mask)


def launch(layer: Layer, sums: str, scales: str, width: int, out: str) -> Launch:
    """From the buffers ``sums`` [R, width] and ``scales`` [R] into ``out`` [T, F]."""
    columns = min(power_of_two(layer.outputs), MOST_COLUMNS)
    height = NUMBERS // columns
    arguments = {
        "sums": pointer(layer.sum_dtype, sums),
        "row_scales": layer.row_scales(scales),
        **{name: layer.buffer(name) for name in ("scale", "bias", "gates", "experts")},
        "pairs": layer.buffer("pairs_out"),
        "out": pointer(layer.last.dtype, out),
        "T": plain(layer.tokens),
        "F": number(layer.outputs),
        "WIDTH": number(width),
    }
    constants = {
        "CHOSEN": layer.chosen,
        "CODES": layer.codes,
        **layer.flags,
        "BT": height,
        "BF": columns,
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
        rotate_rows.launch(layer, "scratch0", "scratch1", width, planar=False),
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
            library_seconds(gpu, layer.rows, layer.outputs, layer.channels, layer.row_dtype),
            moved_seconds(gpu, layer.rows * layer.outputs * 4 + layer.last_bytes),
            down_seconds(layer, gpu),
        )
    )


KERNEL = Kernel("gpu_library", ("butterfly_layer",), supports, build, cost, scratch, layouts)
