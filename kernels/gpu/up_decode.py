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
from .cost import down_decode_seconds, read_seconds, rotation_seconds
from .epilogue import chosen_of, combined, row_of, scales_of
from .launch import Gpu, Launch, Plan, Step
from .layer import BYTES, Layer, divided, layer_of, number, pointer, power_of_two, serves

# Rows that one tile holds: all of them, eight tokens at a time.
MOST_ROWS = 128
# Outputs, and groups of four channels, of a step.
OUTPUTS, GROUPS = 64, 64


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
    K: tl.constexpr,
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
    """out [T, F] of planar rows [T * CHOSEN, K] and codes w [F padded to BF, K / 4]."""
    dtype: tl.constexpr = rows.dtype.element_ty
    first = tl.program_id(0) * BF
    row, there = row_of(0, T, CHOSEN, SLOTS, BM)
    group = tl.arange(0, BG)
    codes = w + (first + tl.arange(0, BF))[:, None] * (K // 4) + group[None, :]
    values = rows + row[None, :] * K + group[:, None]
    here = there[None, :]
    sums = tl.full((BF, BM), 0, tl.int32 if CODES else tl.float32)
    for _ in range(0, K // 4, BG):
        byte = tl.load(codes)
        x0 = tl.load(values, mask=here, other=0)
        x1 = tl.load(values + K // 4, mask=here, other=0)
        x2 = tl.load(values + K // 2, mask=here, other=0)
        x3 = tl.load(values + K // 4 * 3, mask=here, other=0)
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


def sizes(spec: Spec, layer: Layer) -> tuple[int, int]:
    """Outputs and groups of a step: no more than there are, and no less than a tensor core has."""
    outputs = min(spec.parameter("outputs", OUTPUTS), max(power_of_two(layer.outputs), 16))
    groups = min(spec.parameter("groups", GROUPS), power_of_two(divided(layer.channels, 4)))
    return outputs, max(groups, 32 if layer.codes else 16)


def layout(spec: Spec, layer: Layer) -> str:
    outputs, groups = sizes(spec, layer)
    return f"crumbs{outputs}x{4 * groups}x0"


def width(spec: Spec, layer: Layer) -> int:
    """Channels of a row with its padding."""
    depth = 4 * sizes(spec, layer)[1]
    return divided(layer.channels, depth) * depth


def tile_rows(layer: Layer) -> int:
    rows = divided(layer.tokens, 8) * 8 * power_of_two(layer.chosen)
    return max(power_of_two(rows), 16)


def launch(spec: Spec, layer: Layer, rows: str, scales: str, out: str) -> Launch:
    """From the buffers ``rows`` and ``scales`` into ``out``, by the parameters of ``spec``."""
    outputs, groups = sizes(spec, layer)
    arguments = {
        "rows": pointer(layer.row_dtype, rows),
        "row_scales": layer.row_scales(scales),
        "w": pointer("u8", "w"),
        **{name: layer.buffer(name) for name in ("scale", "bias", "gates", "experts")},
        "pairs": layer.buffer("pairs_out"),
        "out": pointer(layer.last.dtype, out),
        "T": number(layer.tokens),
        "F": number(layer.outputs),
    }
    constants = {
        "K": width(spec, layer),
        "CHOSEN": layer.chosen,
        "SLOTS": power_of_two(layer.chosen),
        "CODES": layer.codes,
        **layer.flags,
        "BM": tile_rows(layer),
        "BF": outputs,
        "BG": groups,
    }
    return Launch(
        "up_decode",
        "up_decode",
        tuple(arguments.items()),
        tuple(constants.items()),
        (divided(layer.outputs, outputs), 1, 1),
        4,
        spec.parameter("stages", 4),
    )


def supports(spec: Spec, gpu: Lanes) -> bool:
    if not (isinstance(gpu, Gpu) and spec.op == "butterfly_layer" and gpu.has_tensor_cores):
        return False
    layer = layer_of(spec)
    return (
        serves(spec, gpu, layout(spec, layer))
        and rotate_rows.supports(layer)
        and tile_rows(layer) <= MOST_ROWS
        and shared_bytes(spec, layer) <= gpu.shared_bytes
    )


def shared_bytes(spec: Spec, layer: Layer) -> int:
    """What codes and the four planes of rows take in flight, or the sums on their way."""
    outputs, groups = sizes(spec, layer)
    rows, item = tile_rows(layer), BYTES[layer.row_dtype]
    flight = (outputs + 4 * rows * item) * groups * spec.parameter("stages", 4)
    return max(flight + outputs * groups * item, outputs * rows * 4)


def layouts(spec: Spec, gpu: Lanes) -> Mapping[int, str]:
    return {2: layout(spec, layer_of(spec))}


def scratch(spec: Spec, gpu: Lanes) -> tuple[Tensor, ...]:
    """Rotated rows, their scales, what w_down gets, and parts of what it gives."""
    assert isinstance(gpu, Gpu), "buffers are for GPUs"
    layer = layer_of(spec)
    rows = Tensor(layer.row_dtype, (layer.rows, width(spec, layer)))
    tensors = (rows, Tensor("f32", (layer.rows,)))
    if not layer.down:
        return tensors
    parts = down_decode.parts_of(layer, gpu, spec.parameter("parts", 0))
    alone = parts == 1 or _atomic(spec, layer)
    split = () if alone else (Tensor("f32", (parts, layer.tokens, layer.down)),)
    return (*tensors, layer.last, *split)


def _atomic(spec: Spec, layer: Layer) -> bool:
    """Whether parts are added as they come, which only float32 can: faster, in no fixed order."""
    return bool(spec.parameter("atomic", 0)) and layer.outer == "f32"


def space(spec: Spec, gpu: Lanes) -> tuple[Mapping[str, int], ...]:
    """The default, then changes of it; the same bits each time, so without atomics."""
    changes: list[dict[str, int]] = [{}]
    changes += [{"outputs": outputs} for outputs in (32, 128)]
    changes += [{"groups": 128}, {"groups": 128, "outputs": 128}]
    changes += [{"stages": stages} for stages in (3, 5)]
    changes += [{"parts": parts} for parts in (1, 2, 4, 8, 16)]
    assert isinstance(gpu, Gpu), "the bound is a GPU's"
    layer = layer_of(spec)
    fits = [c for c in changes if shared_bytes(spec.with_parameters(c), layer) <= gpu.shared_bytes]
    return tuple(fits or changes[:1])


def build(spec: Spec, gpu: Lanes, name: str) -> Plan:
    assert isinstance(gpu, Gpu), "plans are for GPUs"
    layer = layer_of(spec)
    out = "scratch2" if layer.down else "y"
    steps: list[Step] = [
        rotate_rows.launch(layer, gpu, "scratch0", "scratch1", width(spec, layer), planar=True),
        launch(spec, layer, "scratch0", "scratch1", out),
    ]
    if layer.down:
        parts = down_decode.parts_of(layer, gpu, spec.parameter("parts", 0))
        steps += down_decode.launches(layer, out, "scratch3", parts, _atomic(spec, layer))
    return Plan(tuple(steps))


def cost(spec: Spec, gpu: Lanes) -> float:
    assert isinstance(gpu, Gpu), "costs are of GPUs"
    layer = layer_of(spec)
    blocks = divided(layer.outputs, sizes(spec, layer)[0])
    return (
        rotation_seconds(layer, gpu)
        + read_seconds(gpu, layer.outputs * layer.channels / 4, blocks)
        + down_decode_seconds(layer, gpu)
    )


KERNEL = Kernel("gpu_decode", ("butterfly_layer",), supports, build, cost, scratch, layouts, space)
