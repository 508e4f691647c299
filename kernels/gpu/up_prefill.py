"""For many tokens: the product of rotated rows with a dense copy, and all behind it in registers.

W_hat is shared, so rows need not be sorted by expert: those of a token stay in one tile, where they
are activated, rotated and added before w_down sees them.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from ..lanes import Lanes
from ..record import Kernel, Spec, Tensor
from . import rotate_rows
from .common import add_product, join_members
from .cost import down_seconds, epilogue_seconds, rotation_seconds, up_seconds
from .epilogue import chosen_of, combined, row_of, scales_of
from .launch import Gpu, Launch, Plan, Product, Step, Unpack
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

# Outputs and depth that all ways divide, if there are so many.
OUTPUTS, DEPTH, DEPTH_CODES = 128, 64, 128


@triton.jit
def up_prefill(
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
    K: tl.tensor,
    GROUP: tl.tensor,
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
    BK: tl.constexpr,
) -> tl.tensor:
    """out [T, F] of rows [T * CHOSEN, K] and w [F padded to BF, K], which is in fragment order."""
    BT: tl.constexpr = BM // SLOTS
    # GROUP tiles of tokens pass all outputs together, so that both stay in the cache.
    tiles = (T + BT - 1) // BT
    in_group = GROUP * ((F + BF - 1) // BF)
    before = tl.program_id(0) // in_group * GROUP
    height = tl.minimum(tiles - before, GROUP)
    token = (before + tl.program_id(0) % in_group % height) * BT
    first = tl.program_id(0) % in_group // height * BF

    row, there = row_of(token, T, CHOSEN, SLOTS, BM)
    depth = tl.arange(0, BK)
    of_row = rows + row.to(tl.int64)[:, None] * K + depth[None, :]
    of_output = w + (first + tl.arange(0, BF))[None, :] * K + depth[:, None]
    sums = tl.full((BM, BF), 0, tl.int32 if CODES else tl.float32)
    for _ in range(0, K, BK):
        left = tl.load(of_row, mask=there[:, None], other=0)
        right = tl.load(of_output)
        sums = add_product(left, right, sums, ASM)
        of_row += BK
        of_output += BK
    of_row = scales_of(row_scales, row, there, CODES)
    gate, expert = chosen_of(gates, experts, row, there)
    y0, y1, y2, y3 = combined(
        sums, of_row, scale, bias, gate, expert, pairs, there, first, F,
        1.0, CODES, SCALES, BIASED, ACTIVATION, LAST, ORDER, FAST, ASM, True, SLOTS, BM, BF,
    )  # fmt: skip
    y = join_members(y0, y1, y2, y3, BT, BF // 4).to(out.dtype.element_ty)
    tokens, column = token + tl.arange(0, BT), first + tl.arange(0, BF)
    mask = (tokens < T)[:, None] & (column < F)[None, :]
    tl.store(out + tokens.to(tl.int64)[:, None] * F + column[None, :], y, mask=mask)


def sizes(layer: Layer) -> tuple[int, int]:
    """The multiples of outputs and of depth that weights are padded to, for all ways."""
    deepest = DEPTH_CODES if layer.codes else DEPTH
    depth = max(min(deepest, power_of_two(layer.channels)), 32 if layer.codes else 16)
    return max(min(OUTPUTS, power_of_two(layer.outputs)), 16), depth


def padded(layer: Layer) -> tuple[int, int]:
    outputs, depth = sizes(layer)
    return divided(layer.outputs, outputs) * outputs, divided(layer.channels, depth) * depth


def layout(layer: Layer) -> str:
    outputs, depth = sizes(layer)
    return f"crumbs{outputs}x{depth}x1"


def ways(layer: Layer) -> list[Way]:
    """Tiles of 64 rows and 128 outputs first: three of them fit a multiprocessor and overlap."""
    outputs, _ = sizes(layer)
    least = 8 * power_of_two(layer.chosen)
    tiles = [(64, 128, 4, 3), (64, 128, 4, 4), (64, 128, 4, 2), (128, 64, 4, 3), (128, 128, 8, 3)]
    tiles += [(64, 64, 4, 3), (64, 64, 4, 2)]
    found = [
        {
            "rows": max(rows, least),
            "outputs": min(width, outputs),
            "warps": warps,
            "stages": stages,
            "group": group,
        }
        for rows, width, warps, stages in tiles
        for group in (8, 4)
    ]
    return [way for i, way in enumerate(found) if way not in found[:i]]


def shared_bytes(way: Way, layer: Layer) -> int:
    """What the tiles of both operands take in flight, or the sums on their way to other threads."""
    tiles = (way["rows"] + way["outputs"]) * sizes(layer)[1] * BYTES[layer.row_dtype]
    return max(tiles * way["stages"], way["rows"] * way["outputs"] * 4)


def fitting(spec: Spec, layer: Layer, gpu: Gpu) -> Way:
    """The parameters of a call."""
    return way_of(spec, ways(layer), lambda way: shared_bytes(way, layer) <= gpu.shared_bytes)


def launch(layer: Layer, way: Way, dense: str, rows: str, scales: str, out: str) -> Launch:
    """From the buffers ``rows`` and ``scales`` into ``out``."""
    slots = power_of_two(layer.chosen)
    arguments = {
        "rows": pointer(layer.row_dtype, rows),
        "row_scales": layer.row_scales(scales),
        "w": pointer(layer.row_dtype, dense),
        **{name: layer.buffer(name) for name in ("scale", "bias", "gates", "experts")},
        "pairs": layer.buffer("pairs_out"),
        "out": pointer(layer.last.dtype, out),
        "T": plain(layer.tokens),
        "F": number(layer.outputs),
        "K": number(padded(layer)[1]),
        "GROUP": plain(way["group"]),
    }
    constants = {
        "CHOSEN": layer.chosen,
        "SLOTS": slots,
        "CODES": layer.codes,
        **layer.flags,
        "BM": way["rows"],
        "BF": way["outputs"],
        "BK": sizes(layer)[1],
    }
    grid = (tiles_of(layer, way), 1, 1)
    return Launch(
        "up_prefill",
        "up_prefill",
        tuple(arguments.items()),
        tuple(constants.items()),
        grid,
        way["warps"],
        way["stages"],
    )


def tiles_of(layer: Layer, way: Way) -> int:
    tokens = way["rows"] // power_of_two(layer.chosen)
    return divided(layer.tokens, tokens) * divided(layer.outputs, way["outputs"])


def supports(spec: Spec, gpu: Lanes) -> bool:
    if not (isinstance(gpu, Gpu) and spec.op == "butterfly_layer" and gpu.has_tensor_cores):
        return False
    layer = layer_of(spec)
    return (
        layer.dtype in HALVES
        and serves(spec, gpu, layout(layer))
        and rotate_rows.supports(layer)
        and layer.chosen <= MOST_CHOSEN
        and shared_bytes(fitting(spec, layer, gpu), layer) <= gpu.shared_bytes
    )


def layouts(spec: Spec, gpu: Lanes) -> Mapping[int, str]:
    return {2: layout(layer_of(spec))}


def scratch(spec: Spec, gpu: Lanes) -> tuple[Tensor, ...]:
    """Rotated rows, their scales, and what w_down gets."""
    layer = layer_of(spec)
    rows = Tensor(layer.row_dtype, (layer.rows, padded(layer)[1]))
    tensors = (rows, Tensor("f32", (layer.rows,)))
    return (*tensors, layer.last) if layer.down else tensors


def space(spec: Spec, gpu: Lanes) -> tuple[Way, ...]:
    assert isinstance(gpu, Gpu), "the bound is a GPU's"
    layer = layer_of(spec)
    fits = [way for way in ways(layer) if shared_bytes(way, layer) <= gpu.shared_bytes]
    return tuple(fits or ways(layer)[:1])


def build(spec: Spec, gpu: Lanes, name: str) -> Plan:
    assert isinstance(gpu, Gpu), "plans are for GPUs"
    layer = layer_of(spec)
    outputs, width = padded(layer)
    out = "scratch2" if layer.down else "y"
    steps: list[Step] = [
        rotate_rows.launch(layer, "scratch0", "scratch1", width, planar=False),
        launch(layer, fitting(spec, layer, gpu), "dense", "scratch0", "scratch1", out),
    ]
    if layer.down:
        steps.append(Product(out, "w_down", "y"))
    return Plan(tuple(steps), (Unpack("w", "dense", (outputs, width), layer.row_dtype),))


def cost(spec: Spec, gpu: Lanes) -> float:
    assert isinstance(gpu, Gpu), "costs are of GPUs"
    layer = layer_of(spec)
    blocks = tiles_of(layer, fitting(spec, layer, gpu))
    rotation, down = rotation_seconds(layer, gpu), down_seconds(layer, gpu)
    return rotation + up_seconds(layer, gpu, blocks) + epilogue_seconds(layer, gpu) + down


KERNEL = Kernel(
    *("gpu_prefill", ("butterfly_layer",), supports, build, cost),
    *(scratch, layouts, space),
    plan=as_launched(build),
)
