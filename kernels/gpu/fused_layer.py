"""The whole layer in one kernel, for models so narrow that a tile of tokens has all channels.

Rows are rotated once. Then, some outputs of W_hat at a time, they are multiplied, activated,
rotated and added, and go through w_down, whose sums stay in registers.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from ..lanes import Lanes
from ..record import Kernel, Spec, Tensor
from . import add_parts
from .common import (
    add_product,
    code,
    crumbs,
    inverse_of,
    join_members,
    row_maximum,
    split_members,
    turn,
)
from .cost import epilogue_seconds, fused_seconds
from .epilogue import chosen_of, combined, row_of
from .launch import Gpu, Launch, Plan, Step, Unpack
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

MOST_CHANNELS = 512
MOST_PARTS = 16
# Bytes of shared memory for what changes its layout in passing.
SPARE = 8192
# Registers of a thread for what lives in all of the loop; a bit more, and compilers spill. The GPUs
# whose tensor cores read rows where they lie in shared memory can afford more.
MOST_HELD, MOST_HELD_SHARED = 100, 137


@triton.jit
def fused_layer(
    x: tl.tensor,
    w: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    gates: tl.tensor,
    experts: tl.tensor,
    pairs_in: tl.tensor,
    pairs: tl.tensor,
    w_down: tl.tensor,
    out: tl.tensor,
    T: tl.tensor,
    D: tl.tensor,
    F: tl.tensor,
    O: tl.tensor,  # noqa: E741
    ROWS: tl.tensor,
    PART: tl.tensor,
    PACKED: tl.constexpr,
    ORDER_IN: tl.constexpr,
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
    BD: tl.constexpr,
    BF: tl.constexpr,
    BO: tl.constexpr,
) -> tl.tensor:
    """Part of out [parts, T, O] of x [T, D], from outputs PART * part on.

    w, of ROWS in fragment order, is codes [ROWS, BD / 4] where PACKED, else planar [ROWS, BD].
    """
    BT: tl.constexpr = BM // SLOTS
    G: tl.constexpr = BD // 4
    dtype: tl.constexpr = w_down.dtype.element_ty
    token = tl.program_id(0) * BT
    row, there = row_of(token, T, CHOSEN, SLOTS, BM)
    gate, expert = chosen_of(gates, experts, row, there)
    column, group = tl.arange(0, BD), tl.arange(0, G)
    of_token = x + (row // CHOSEN).to(tl.int64)[:, None] * D
    here = there[:, None] & (column < D)[None, :]
    values = tl.load(of_token + column[None, :], mask=here, other=0.0).to(tl.float32)
    x0, x1, x2, x3 = split_members(values, BM, G)
    words = (expert[:, None] * (D // 4) + group[None, :]) * 4
    turned = there[:, None] & (group * 4 < D)[None, :]
    x0, x1, x2, x3 = turn(x0, x1, x2, x3, pairs_in, words, turned, ORDER_IN, BM, G)
    largest = row_maximum(x0, x1, x2, x3)
    of_row = largest * 0.007874015748031496
    if CODES:
        inverse = inverse_of(largest, BM)
        x0, x1 = code(x0, inverse), code(x1, inverse)
        x2, x3 = code(x2, inverse), code(x3, inverse)
    else:
        x0, x1, x2, x3 = x0.to(dtype), x1.to(dtype), x2.to(dtype), x3.to(dtype)
    UNIT: tl.constexpr = (0.015625 if CODES else 0.5) if PACKED else 1.0

    result = tl.arange(0, BO)
    total = tl.full((BT, BO), 0.0, tl.float32)
    start = tl.program_id(1) * PART
    for step in range(0, PART, BF):
        first = start + step
        channel = first + tl.arange(0, BF)
        sums = tl.full((BM, BF), 0, tl.int32 if CODES else tl.float32)
        stored = (channel < ROWS)[None, :]
        if PACKED:
            byte = tl.load(w + channel[None, :] * G + group[:, None], mask=stored, other=0)
            sums = add_product(x0, crumbs(byte, 0, x0.dtype, ASM), sums, ASM)
            sums = add_product(x1, crumbs(byte, 1, x0.dtype, ASM), sums, ASM)
            sums = add_product(x2, crumbs(byte, 2, x0.dtype, ASM), sums, ASM)
            sums = add_product(x3, crumbs(byte, 3, x0.dtype, ASM), sums, ASM)
        else:
            plane = w + channel[None, :] * BD + group[:, None]
            sums = add_product(x0, tl.load(plane, mask=stored, other=0), sums, ASM)
            sums = add_product(x1, tl.load(plane + G, mask=stored, other=0), sums, ASM)
            sums = add_product(x2, tl.load(plane + 2 * G, mask=stored, other=0), sums, ASM)
            sums = add_product(x3, tl.load(plane + 3 * G, mask=stored, other=0), sums, ASM)
        y0, y1, y2, y3 = combined(
            sums, of_row, scale, bias, gate, expert, pairs, there, first, F,
            UNIT, CODES, SCALES, BIASED, ACTIVATION, LAST, ORDER, FAST, ASM, True, SLOTS, BM, BF,
        )  # fmt: skip
        y = join_members(y0, y1, y2, y3, BT, BF // 4).to(dtype)
        valid = (channel < F)[:, None] & (result < O)[None, :]
        down = tl.load(w_down + result[None, :] * F + channel[:, None], mask=valid, other=0.0)
        total = add_product(y, down, total, ASM)
    tokens = token + tl.arange(0, BT)
    mask = (tokens < T)[:, None] & (result < O)[None, :]
    place = (tl.program_id(1) * T + tokens).to(tl.int64)[:, None] * O + result[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


def ways(layer: Layer) -> list[Way]:
    """Tiles of 32 tokens first, of 16 where there are no more; smaller where channels are many.

    Of codes, and of many channels, those are left out that some compiler gives a stack.
    """
    large, narrow = [(32, 64, 8, 2), (32, 32, 8, 2)], layer.channels <= 256
    if layer.codes:
        small = [(16, 32, 8, 2)]
    elif narrow:
        small = [(16, 64, 8, 2), (16, 32, 4, 2), (16, 16, 4, 2)]
    else:
        small = [(16, 64, 8, 2), (16, 32, 8, 2)]
    tiles = small + large if layer.tokens <= 16 else large + small
    tiles.append((64, 32, 8, 2))
    dense = tiles[: 2 if narrow else 1]
    outputs = max(power_of_two(layer.outputs), 16)
    found = [
        {
            "tokens": tokens,
            "outputs": min(width, outputs),
            "warps": warps,
            "stages": stages,
            "packed": packed,
            "parts": 0,
        }
        for packed in (1, 0)
        for tokens, width, warps, stages in (tiles if packed else dense)
    ]
    return [way for i, way in enumerate(found) if way not in found[:i]]


def sizes(layer: Layer, way: Way) -> dict[str, int]:
    """Rows, channels, outputs and results of a tile, by the names that the kernel has for them."""
    return {
        "BM": way["tokens"] * power_of_two(layer.chosen),
        "BD": max(power_of_two(layer.channels), 128 if layer.codes else 64),
        "BF": way["outputs"],
        "BO": max(power_of_two(layer.down), 16),
    }


def shared_bytes(way: Way, layer: Layer, gpu: Gpu) -> int:
    """At most what rows take, weights in flight, and what goes to other threads on its way.

    Tensor cores from Hopper on read 64 rows at a time where they lie, so one buffer more is held.
    """
    tile = sizes(layer, way)
    item, row_item = BYTES[layer.dtype], BYTES[layer.row_dtype]
    up = tile["BF"] * tile["BD"] // 4 if way["packed"] else tile["BF"] * tile["BD"] * row_item
    down = tile["BF"] * tile["BO"] * item
    hopper = gpu.capability >= 90
    flight = up * (way["stages"] - (not (hopper and tile["BM"] >= 64)))
    flight += down * (way["stages"] - (not (hopper and way["tokens"] >= 64)))
    passed = tile["BM"] * tile["BF"] * 4 + way["tokens"] * tile["BF"] * item
    return tile["BM"] * tile["BD"] * row_item + flight + passed + SPARE


def held(way: Way, layer: Layer) -> int:
    """Registers of rows, of sums and of the result, which all live at once."""
    tile = sizes(layer, way)
    rows = tile["BM"] * tile["BD"] * BYTES[layer.row_dtype] // 4
    return rows + tile["BM"] * tile["BF"] + way["tokens"] * tile["BO"]


def fits(way: Way, layer: Layer, gpu: Gpu) -> bool:
    most = MOST_HELD_SHARED if 90 <= gpu.capability < 120 else MOST_HELD
    small = held(way, layer) <= most * 32 * way["warps"]
    return small and shared_bytes(way, layer, gpu) <= gpu.shared_bytes


def fitting(spec: Spec, layer: Layer, gpu: Gpu) -> Way:
    """The parameters of a call."""
    return way_of(spec, ways(layer), lambda way: fits(way, layer, gpu))


def layout(layer: Layer, way: Way) -> str:
    tile = sizes(layer, way)
    return f"crumbs{tile['BF']}x{tile['BD']}x1"


def stored(layer: Layer, way: Way) -> tuple[int, int]:
    """Rows of W_hat and their length, with padding."""
    tile = sizes(layer, way)
    return divided(layer.outputs, tile["BF"]) * tile["BF"], tile["BD"]


def parts_of(layer: Layer, way: Way, gpu: Gpu) -> int:
    """How many parts the outputs of W_hat are split into: by default, enough to fill the GPU."""
    blocks = divided(layer.tokens, way["tokens"])
    enough = power_of_two(divided(gpu.multiprocessors, blocks) // 2)
    steps = divided(layer.outputs, way["outputs"])
    return max(1, min(way["parts"] or enough, MOST_PARTS, steps))


def launch(layer: Layer, way: Way, gpu: Gpu) -> Launch:
    """Into the result, or into parts of it in ``scratch0``."""
    tile, parts, rows = sizes(layer, way), parts_of(layer, way, gpu), stored(layer, way)[0]
    arguments = {
        "x": layer.buffer("x"),
        "w": pointer("u8", "w") if way["packed"] else pointer(layer.row_dtype, "dense"),
        **{name: layer.buffer(name) for name in ("scale", "bias", "gates", "experts", "pairs_in")},
        "pairs": layer.buffer("pairs_out"),
        "w_down": layer.buffer("w_down"),
        "out": pointer("f32", "scratch0") if parts > 1 else pointer(layer.outer, "y"),
        "T": plain(layer.tokens),
        "D": number(layer.channels),
        "F": number(layer.outputs),
        "O": number(layer.down),
        "ROWS": number(rows),
        "PART": number(divided(rows, parts * tile["BF"]) * tile["BF"]),
    }
    constants = {
        "PACKED": bool(way["packed"]),
        "ORDER_IN": layer.order_in,
        "CHOSEN": layer.chosen,
        "SLOTS": power_of_two(layer.chosen),
        "CODES": layer.codes,
        **layer.flags,
        **tile,
    }
    return Launch(
        "fused_layer",
        "fused_layer",
        tuple(arguments.items()),
        tuple(constants.items()),
        (divided(layer.tokens, way["tokens"]), parts, 1),
        way["warps"],
        way["stages"],
    )


def supports(spec: Spec, gpu: Lanes) -> bool:
    if not (isinstance(gpu, Gpu) and spec.op == "butterfly_layer" and gpu.has_tensor_cores):
        return False
    layer = layer_of(spec)
    way = fitting(spec, layer, gpu)
    return (
        layer.dtype in HALVES
        and 0 < layer.down <= MOST_CHANNELS
        and layer.channels <= MOST_CHANNELS
        and layer.chosen <= MOST_CHOSEN
        and serves(spec, gpu, layout(layer, way))
        and fits(way, layer, gpu)
    )


def layouts(spec: Spec, gpu: Lanes) -> Mapping[int, str]:
    assert isinstance(gpu, Gpu), "layouts are for GPUs"
    layer = layer_of(spec)
    return {2: layout(layer, fitting(spec, layer, gpu))}


def scratch(spec: Spec, gpu: Lanes) -> tuple[Tensor, ...]:
    """Parts of the result."""
    assert isinstance(gpu, Gpu), "buffers are for GPUs"
    layer = layer_of(spec)
    parts = parts_of(layer, fitting(spec, layer, gpu), gpu)
    return (Tensor("f32", (parts, layer.tokens, layer.down)),) if parts > 1 else ()


def space(spec: Spec, gpu: Lanes) -> tuple[Way, ...]:
    """Tiles, with codes and with a dense copy; and of the first one, how many parts."""
    assert isinstance(gpu, Gpu), "the bound is a GPU's"
    layer = layer_of(spec)
    fitting = [way for way in ways(layer) if fits(way, layer, gpu)] or ways(layer)[:1]
    return (*fitting, *(fitting[0] | {"parts": parts} for parts in (1, 2, 4, 8, 16)))


def build(spec: Spec, gpu: Lanes, name: str) -> Plan:
    assert isinstance(gpu, Gpu), "plans are for GPUs"
    layer = layer_of(spec)
    way = fitting(spec, layer, gpu)
    parts = parts_of(layer, way, gpu)
    steps: list[Step] = [launch(layer, way, gpu)]
    if parts > 1:
        steps.append(add_parts.launch(layer, "scratch0", parts))
    dense = Unpack("w", "dense", stored(layer, way), layer.row_dtype, planar=True)
    return Plan(tuple(steps), () if way["packed"] else (dense,))


def cost(spec: Spec, gpu: Lanes) -> float:
    assert isinstance(gpu, Gpu), "costs are of GPUs"
    layer = layer_of(spec)
    way = fitting(spec, layer, gpu)
    parts = parts_of(layer, way, gpu)
    blocks = divided(layer.tokens, way["tokens"]) * parts
    adding = gpu.launch_seconds if parts > 1 else 0.0
    return fused_seconds(layer, gpu, blocks) + epilogue_seconds(layer, gpu) + adding


KERNEL = Kernel(
    *("gpu_fused", ("butterfly_layer",), supports, build, cost),
    *(scratch, layouts, space),
    plan=as_launched(build),
)
