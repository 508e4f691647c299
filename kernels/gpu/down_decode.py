"""For few tokens: w_down, split over its depth so that all of a GPU reads it."""

from __future__ import annotations

import triton
import triton.language as tl

from ..record import Tensor
from . import add_parts
from .common import add_product
from .launch import Fill, Gpu, Launch, Step
from .layer import BYTES, Layer, Way, divided, number, plain, pointer, power_of_two

# Parts of the depth, at most.
MOST_PARTS = 16
# Outputs of a block, its depth of a step at most, and steps in flight.
OUTPUTS, DEPTH, STAGES = 32, 128, 4
# Bytes that the steps in flight take at most: what every GPU with tensor cores has.
FLIGHT = 96 * 1024


@triton.jit
def down_decode(
    rows: tl.tensor,
    w: tl.tensor,
    out: tl.tensor,
    T: tl.tensor,
    F: tl.tensor,
    D: tl.tensor,
    PART: tl.tensor,
    ATOMIC: tl.constexpr,
    ASM: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
) -> tl.tensor:
    """Part of out [parts, T, D] of rows [T, F] and w [D, F]; ATOMIC: added to out [T, D]."""
    output = tl.program_id(0) * BD + tl.arange(0, BD)
    token = tl.arange(0, BT)
    start = tl.program_id(1) * PART
    sums = tl.full((BD, BT), 0.0, tl.float32)
    for step in range(0, PART, BK):
        k = start + step + tl.arange(0, BK)
        here = (output < D)[:, None] & (k < F)[None, :]
        left = tl.load(w + output[:, None] * F + k[None, :], mask=here, other=0.0)
        here = (k < F)[:, None] & (token < T)[None, :]
        right = tl.load(rows + token[None, :] * F + k[:, None], mask=here, other=0.0)
        sums = add_product(left, right, sums, ASM)
    place = token[None, :] * D + output[:, None]
    mask = (output < D)[:, None] & (token < T)[None, :]
    if ATOMIC:
        tl.atomic_add(out + place, sums, mask=mask, sem="relaxed")
    else:
        place += tl.program_id(1) * T * D
        tl.store(out + place, sums.to(out.dtype.element_ty), mask=mask)


def token_tile(layer: Layer) -> int:
    return max(16, power_of_two(layer.tokens))


def depth_of(layer: Layer) -> int:
    """The depth of a step: less for many tokens, whose rows are in flight too."""
    most = FLIGHT // ((OUTPUTS + token_tile(layer)) * BYTES[layer.dtype] * STAGES)
    return min(DEPTH, power_of_two(most + 1) // 2)


def parts_of(layer: Layer, way: Way, gpu: Gpu) -> int:
    """How many parts the depth is split into: by default, enough to fill the GPU."""
    blocks = divided(layer.down, OUTPUTS)
    most = min(MOST_PARTS, power_of_two(divided(layer.outputs, depth_of(layer))))
    enough = power_of_two(divided(gpu.multiprocessors, blocks))
    return max(1, min(way["parts"] or enough, most))


def is_atomic(layer: Layer, way: Way) -> bool:
    """Whether parts are added as they come, which only float32 can: faster, in no fixed order."""
    return bool(way["atomic"]) and layer.outer == "f32"


def scratch(layer: Layer, way: Way, gpu: Gpu) -> tuple[Tensor, ...]:
    """Parts of the result, where they are added after all are there."""
    parts = parts_of(layer, way, gpu)
    if parts == 1 or is_atomic(layer, way):
        return ()
    return (Tensor("f32", (parts, layer.tokens, layer.down)),)


def steps(layer: Layer, way: Way, gpu: Gpu, rows: str, parts_name: str) -> tuple[Step, ...]:
    """From the buffer ``rows`` [T, F] into the result, by way of parts of it."""
    parts, atomic = parts_of(layer, way, gpu), is_atomic(layer, way)
    direct, depth = parts == 1 or atomic, depth_of(layer)
    arguments = {
        "rows": pointer(layer.dtype, rows),
        "w": layer.buffer("w_down"),
        "out": pointer(layer.outer, "y") if direct else pointer("f32", parts_name),
        "T": plain(layer.tokens),
        "F": number(layer.outputs),
        "D": number(layer.down),
        "PART": number(divided(layer.outputs, parts * depth) * depth),
    }
    constants = {
        "ATOMIC": atomic,
        "ASM": True,
        "BT": token_tile(layer),
        "BD": OUTPUTS,
        "BK": depth,
    }
    grid = (divided(layer.down, OUTPUTS), parts, 1)
    down = Launch(
        "down_decode",
        "down_decode",
        tuple(arguments.items()),
        tuple(constants.items()),
        grid,
        4,
        STAGES,
    )
    if atomic:
        return Fill("y"), down
    return (down,) if parts == 1 else (down, add_parts.launch(layer, parts_name, parts))
