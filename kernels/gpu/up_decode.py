"""For few tokens: the 2-bit weights are read as they are, each once, and unpacked on their way.

They are the left operand, so that few rows do not leave a tensor core idle.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from ..lanes import Lanes
from ..record import Kernel, Spec, Tensor
from . import down_decode, rotate_rows
from .common import add_product, crumbs, join_members
from .cost import down_decode_seconds, rotation_seconds, up_decode_seconds
from .epilogue import chosen_of, combined, row_of, scales_of
from .launch import Gpu, Launch, Plan, Step
from .layer import (
    BYTES,
    HALVES,
    MOST_CHOSEN,
    Layer,
    Way,
    as_launched,
    divided,
    layer_of,
    number,
    plain,
    pointer,
    power_of_two,
    serves,
    way_of,
)

# Rows that one tile holds: all of them, eight tokens at a time. With more, registers spill; float32
# has no tensor cores, whose sums lie in fewer.
MOST_ROWS = {"i8": 128, "f16": 64, "bf16": 64, "f32": 16}
# Sums of a tile, and tokens of one of w_down: with more, registers spill.
MOST_SUMS, MOST_TOKENS = 64 * 128, 64


@triton.jit
def up_decode(
    rows: tl.tensor,
    row_scales: tl.tensor,
    w: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    gates: tl.tensor,
    experts: tl.tensor,
    pairs: tl.tensor,
    out: tl.tensor,
    T: tl.tensor,
    F: tl.tensor,
    GROUPS: tl.tensor,
    CHOSEN: tl.constexpr,
    SLOTS: tl.constexpr,
    CODES: tl.constexpr,
    SCALES: tl.constexpr,
    BIASED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LAST: tl.constexpr,
    ORDER: tl.constexpr,
    FAST: tl.constexpr,
    ASM: tl.constexpr,
    BM: tl.constexpr,
    BF: tl.constexpr,
    BG: tl.constexpr,
) -> tl.tensor:
    """out [T, F] of planar rows [T * CHOSEN, 4 GROUPS] and codes w [F padded to BF, GROUPS]."""
    dtype: tl.constexpr = rows.dtype.element_ty
    first = tl.program_id(0) * BF
    row, there = row_of(0, T, CHOSEN, SLOTS, BM)
    group = tl.arange(0, BG)
    codes = w + (first + tl.arange(0, BF))[:, None] * GROUPS + group[None, :]
    values = rows + row[None, :] * (4 * GROUPS) + group[:, None]
    here = there[None, :]
    sums = tl.full((BF, BM), 0, tl.int32 if CODES else tl.float32)
    for _ in range(0, GROUPS, BG):
        byte = tl.load(codes)
        x0 = tl.load(values, mask=here, other=0)
        x1 = tl.load(values + GROUPS, mask=here, other=0)
        x2 = tl.load(values + 2 * GROUPS, mask=here, other=0)
        x3 = tl.load(values + 3 * GROUPS, mask=here, other=0)
        sums = add_product(crumbs(byte, 0, dtype, ASM), x0, sums, ASM)
        sums = add_product(crumbs(byte, 1, dtype, ASM), x1, sums, ASM)
        sums = add_product(crumbs(byte, 2, dtype, ASM), x2, sums, ASM)
        sums = add_product(crumbs(byte, 3, dtype, ASM), x3, sums, ASM)
        codes += BG
        values += BG
    UNIT: tl.constexpr = 0.015625 if CODES else 0.5
    of_row = scales_of(row_scales, row, there, CODES)
    gate, expert = chosen_of(gates, experts, row, there)
    y0, y1, y2, y3 = combined(
        tl.trans(sums), of_row, scale, bias, gate, expert, pairs, there, first, F,
        UNIT, CODES, SCALES, BIASED, ACTIVATION, LAST, ORDER, FAST, ASM, False, SLOTS, BM, BF,
    )  # fmt: skip
    BT: tl.constexpr = BM // SLOTS
    y = join_members(y0, y1, y2, y3, BT, BF // 4).to(out.dtype.element_ty)
    token, column = tl.arange(0, BT), first + tl.arange(0, BF)
    mask = (token < T)[:, None] & (column < F)[None, :]
    tl.store(out + token[:, None] * F + column[None, :], y, mask=mask)


def ways(layer: Layer) -> list[Way]:
    """Steps of 64 outputs and 64 groups first, and smaller ones for GPUs and rows that need them.

    No more than there are, and no less than a tensor core has.
    """
    outputs = max(power_of_two(layer.outputs), 16)
    groups = power_of_two(divided(layer.channels, 4))
    least = 32 if layer.codes else 16
    steps = [(64, 64, 4), (64, 32, 4), (64, 32, 2), (32, 64, 4), (128, 64, 4)]
    found = [
        {
            "outputs": min(width, outputs),
            "groups": max(min(depth, groups), least),
            "stages": stages,
            "parts": 0,
            "atomic": 0,
        }
        for width, depth, stages in steps
    ]
    return [way for i, way in enumerate(found) if way not in found[:i]]


def shared_bytes(way: Way, layer: Layer) -> int:
    """What codes and the four planes of rows take in flight, or the sums on their way."""
    rows, item = tile_rows(layer), BYTES[layer.row_dtype]
    flight = (way["outputs"] + 4 * rows * item) * way["groups"] * way["stages"]
    return max(flight + way["outputs"] * way["groups"] * item, way["outputs"] * rows * 4)


def fits(way: Way, layer: Layer, gpu: Gpu) -> bool:
    small = way["outputs"] * tile_rows(layer) <= MOST_SUMS
    return small and shared_bytes(way, layer) <= gpu.shared_bytes


def fitting(spec: Spec, layer: Layer, gpu: Gpu) -> Way:
    """The parameters of a call."""
    return way_of(spec, ways(layer), lambda way: fits(way, layer, gpu))


def layout(way: Way) -> str:
    return f"crumbs{way['outputs']}x{4 * way['groups']}x0"


def width_of(way: Way, layer: Layer) -> int:
    """Channels of a row with its padding."""
    depth = 4 * way["groups"]
    return divided(layer.channels, depth) * depth


def tile_rows(layer: Layer) -> int:
    rows = divided(layer.tokens, 8) * 8 * power_of_two(layer.chosen)
    return max(power_of_two(rows), 16)


def launch(layer: Layer, way: Way, rows: str, scales: str, out: str) -> Launch:
    """From the buffers ``rows`` and ``scales`` into ``out``."""
    arguments = {
        "rows": pointer(layer.row_dtype, rows),
        "row_scales": layer.row_scales(scales),
        "w": pointer("u8", "w"),
        **{name: layer.buffer(name) for name in ("scale", "bias", "gates", "experts")},
        "pairs": layer.buffer("pairs_out"),
        "out": pointer(layer.last.dtype, out),
        "T": plain(layer.tokens),
        "F": number(layer.outputs),
        "GROUPS": number(width_of(way, layer) // 4),
    }
    constants = {
        "CHOSEN": layer.chosen,
        "SLOTS": power_of_two(layer.chosen),
        "CODES": layer.codes,
        **layer.flags,
        "BM": tile_rows(layer),
        "BF": way["outputs"],
        "BG": way["groups"],
    }
    return Launch(
        "up_decode",
        "up_decode",
        tuple(arguments.items()),
        tuple(constants.items()),
        (divided(layer.outputs, way["outputs"]), 1, 1),
        4,
        way["stages"],
    )


def supports(spec: Spec, gpu: Lanes) -> bool:
    if not (isinstance(gpu, Gpu) and spec.op == "butterfly_layer" and gpu.has_tensor_cores):
        return False
    layer = layer_of(spec)
    way = fitting(spec, layer, gpu)
    return (
        serves(spec, gpu, layout(way))
        and rotate_rows.supports(layer)
        and layer.chosen <= MOST_CHOSEN
        and layer.tokens <= MOST_TOKENS
        and tile_rows(layer) <= MOST_ROWS["f32" if layer.dtype == "f32" else layer.row_dtype]
        and fits(way, layer, gpu)
    )


def layouts(spec: Spec, gpu: Lanes) -> Mapping[int, str]:
    assert isinstance(gpu, Gpu), "layouts are for GPUs"
    return {2: layout(fitting(spec, layer_of(spec), gpu))}


def scratch(spec: Spec, gpu: Lanes) -> tuple[Tensor, ...]:
    """Rotated rows, their scales, what w_down gets, and parts of what it gives."""
    assert isinstance(gpu, Gpu), "buffers are for GPUs"
    layer = layer_of(spec)
    way = fitting(spec, layer, gpu)
    rows = Tensor(layer.row_dtype, (layer.rows, width_of(way, layer)))
    tensors = (rows, Tensor("f32", (layer.rows,)))
    if not layer.down:
        return tensors
    return (*tensors, layer.last, *down_decode.scratch(layer, way, gpu))


def space(spec: Spec, gpu: Lanes) -> tuple[Way, ...]:
    """Steps, and parts of w_down; of float32 one step, whose tile fits the registers.

    Without atomics: a tuner keeps what gives the same bits again.
    """
    assert isinstance(gpu, Gpu), "the bound is a GPU's"
    layer = layer_of(spec)
    found = [way for way in ways(layer) if fits(way, layer, gpu)] or ways(layer)
    found = found[: None if layer.dtype in HALVES else 1]
    parts = [found[0] | {"parts": parts} for parts in (1, 2, 4, 8, 16)] if layer.down else []
    return (*found, *parts)


def build(spec: Spec, gpu: Lanes, name: str) -> Plan:
    assert isinstance(gpu, Gpu), "plans are for GPUs"
    layer = layer_of(spec)
    way = fitting(spec, layer, gpu)
    out = "scratch2" if layer.down else "y"
    width = width_of(way, layer)
    steps: list[Step] = [
        rotate_rows.launch(layer, "scratch0", "scratch1", width, planar=True),
        launch(layer, way, "scratch0", "scratch1", out),
    ]
    if layer.down:
        steps += down_decode.steps(layer, way, gpu, out, "scratch3")
    return Plan(tuple(steps))


def cost(spec: Spec, gpu: Lanes) -> float:
    assert isinstance(gpu, Gpu), "costs are of GPUs"
    layer = layer_of(spec)
    blocks = divided(layer.outputs, fitting(spec, layer, gpu)["outputs"])
    up = up_decode_seconds(layer, gpu, tile_rows(layer), blocks)
    return rotation_seconds(layer, gpu) + up + down_decode_seconds(layer, gpu)


KERNEL = Kernel(
    *("gpu_decode", ("butterfly_layer",), supports, build, cost),
    *(scratch, layouts, space),
    plan=as_launched(build),
)
