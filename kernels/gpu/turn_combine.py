"""Behind a product of the library: `combine_rows` for rotations in any number of layers.

With it comes the way of every GPU to compute a layer whose rotations have more than two.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import triton
import triton.language as tl

from ..lanes import Lanes
from ..record import Kernel, Spec, Tensor
from . import turn_rows
from .activations import activate
from .combine_rows import LAYOUT, padded
from .common import turn_layers
from .cost import down_seconds, library_seconds, moved_seconds
from .epilogue import activated, chosen_of, scales_of
from .launch import Gpu, Launch, Plan, Product, Step, Unpack
from .layer import BYTES, Layer, layer_of, number, plain, pointer, serves
from .turn_rows import MOST_COLUMNS, places_of, programs_of, tile_of

OP = "butterfly_deep_layer"
# Numbers of a program that eight warps hold at most. With others, some compiler has to use a stack.
OF_EIGHT_WARPS = 4096


@triton.jit
def turn_combine(
    sums: tl.tensor,
    row_scales: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    gates: tl.tensor,
    experts: tl.tensor,
    pairs: tl.tensor,
    partners: tl.tensor,
    places: tl.tensor,
    out: tl.tensor,
    T: tl.tensor,
    F: tl.tensor,
    WIDTH: tl.tensor,
    KEPT: tl.tensor,
    LAYERS: tl.tensor,
    CHOSEN: tl.constexpr,
    CODES: tl.constexpr,
    SCALES: tl.constexpr,
    BIASED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LAST: tl.constexpr,
    FAST: tl.constexpr,
    ASM: tl.constexpr,
    BT: tl.constexpr,
    BF: tl.constexpr,
) -> tl.tensor:
    """out [T, KEPT] of sums [T * CHOSEN, WIDTH], of which F are of outputs."""
    column = tl.arange(0, BF)
    place = places + (tl.program_id(0) * BT + tl.arange(0, BT))[:, None] * BF
    for tile in range(tl.program_id(0), (T + BT - 1) // BT, tl.num_programs(0)):
        token = tile * BT + tl.arange(0, BT)
        there = token < T
        within = there[:, None] & (column < F)[None, :]
        y = tl.full((BT, BF), 0.0, tl.float32)
        for slot in tl.static_range(CHOSEN):
            row = token * CHOSEN + slot
            start = sums + row.to(tl.int64)[:, None] * WIDTH
            of_row = scales_of(row_scales, row, there, CODES)
            gate, expert = chosen_of(gates, experts, row, there)
            u = activated(
                tl.load(start + column[None, :], mask=within, other=0),
                of_row, scale, bias, column, column < F,
                1.0, CODES, SCALES, BIASED, ACTIVATION, LAST, FAST, ASM,
            )  # fmt: skip
            u = turn_layers(u, pairs, partners, place, expert, there, column, F, LAYERS)
            if LAST:
                u = activate(u, ACTIVATION, FAST, ASM)
            y += u * gate[:, None]
        kept = there[:, None] & (column < KEPT)[None, :]
        start = out + token.to(tl.int64)[:, None] * KEPT
        tl.store(start + column[None, :], y.to(out.dtype.element_ty), mask=kept)


def launch(
    layer: Layer, gpu: Gpu, sums: str, scales: str, places: str, width: int, out: str
) -> Launch:
    """From the buffers ``sums`` [R, width] and ``scales`` [R] into ``out`` [T, kept]."""
    height, columns = tile_of(layer.outputs)
    arguments = {
        "sums": pointer(layer.sum_dtype, sums),
        "row_scales": layer.row_scales(scales),
        **{name: layer.buffer(name) for name in ("scale", "bias", "gates", "experts")},
        "pairs": layer.buffer("pairs_out"),
        "partners": layer.buffer("partners_out"),
        "places": pointer("f32", places),
        "out": pointer(layer.last.dtype, out),
        "T": plain(layer.tokens),
        "F": number(layer.outputs),
        "WIDTH": number(width),
        "KEPT": number(layer.kept),
        "LAYERS": plain(layer.operands["partners_out"].shape[0]),
    }
    constants = {
        "CHOSEN": layer.chosen,
        "CODES": layer.codes,
        **{name: value for name, value in layer.flags.items() if name != "ORDER"},
        "BT": height,
        "BF": columns,
    }
    return Launch(
        "turn_combine",
        "turn_combine",
        tuple(arguments.items()),
        tuple(constants.items()),
        (programs_of(gpu, layer.tokens, layer.outputs), 1, 1),
        8 if columns <= OF_EIGHT_WARPS else 16,
    )


def supports(spec: Spec, gpu: Lanes) -> bool:
    if not (isinstance(gpu, Gpu) and spec.op == OP):
        return False
    outputs, channels = spec.operands[2].shape
    tables = ("partners_in", "partners_out")
    return (
        serves(spec, gpu, LAYOUT, OP)
        and all(layer_of(spec).operands[name].dtype == "i32" for name in tables)
        and max(outputs, padded(channels)) <= MOST_COLUMNS
    )


def layouts(spec: Spec, gpu: Lanes) -> Mapping[int, str]:
    return {2: LAYOUT}


def sizes(layer: Layer) -> tuple[int, int]:
    """Outputs and depth of W_hat with padding."""
    outputs, depth = layer.operands["w"].shape
    return padded(outputs), padded(depth)


def scratch(spec: Spec, gpu: Lanes) -> tuple[Tensor, ...]:
    """Rotated rows, their scales, what the product gives, rows on their way, what w_down gets."""
    assert isinstance(gpu, Gpu), "buffers are for GPUs"
    layer = layer_of(spec)
    outputs, width = sizes(layer)
    ways = places_of(gpu, layer.rows, width), places_of(gpu, layer.tokens, layer.outputs)
    tensors = [
        Tensor(layer.row_dtype, (layer.rows, width)),
        Tensor("f32", (layer.rows,)),
        Tensor(layer.sum_dtype, (layer.rows, outputs)),
        max(ways, key=lambda tensor: prod(tensor.shape)),
    ]
    return (*tensors, layer.last) if layer.down else tuple(tensors)


def build(spec: Spec, gpu: Lanes, name: str) -> Plan:
    assert isinstance(gpu, Gpu), "plans are for GPUs"
    layer = layer_of(spec)
    outputs, width = sizes(layer)
    out = "scratch4" if layer.down else "y"
    steps: list[Step] = [
        turn_rows.launch(layer, gpu, "scratch0", "scratch1", "scratch3", width),
        Product("scratch0", "dense", "scratch2"),
        launch(layer, gpu, "scratch2", "scratch1", "scratch3", outputs, out),
    ]
    if layer.down:
        steps.append(Product(out, "w_down", "y"))
    return Plan(tuple(steps), (Unpack("w", "dense", (outputs, width), layer.row_dtype),))


def cost(spec: Spec, gpu: Lanes) -> float:
    """Every row also reads the numbers of its expert's rotations."""
    assert isinstance(gpu, Gpu), "costs are of GPUs"
    layer = layer_of(spec)
    outputs, width = sizes(layer)
    words = [BYTES[layer.operands[n].dtype] * 2 for n in ("pairs_in", "pairs_out")]
    layers = [layer.operands[n].shape[0] for n in ("partners_in", "partners_out")]
    turned = layer.rows * width * (words[0] * layers[0] + BYTES[layer.row_dtype])
    behind = layer.rows * outputs * (words[1] * layers[1] + 4) + layer.last_bytes
    product = library_seconds(gpu, layer.rows, outputs, width, layer.row_dtype)
    ends = moved_seconds(gpu, turned) + moved_seconds(gpu, behind)
    return ends + product + down_seconds(layer, gpu)


KERNEL = Kernel("gpu_deep_library", (OP,), supports, build, cost, scratch, layouts)
