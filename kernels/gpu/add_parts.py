"""Adds parts of sums in their order, so that the same input gives the same bits."""

from __future__ import annotations

import triton
import triton.language as tl

from .launch import Launch
from .layer import Layer, divided, number, pointer

NUMBERS = 1024


@triton.jit
def add_parts(
    parts: tl.tensor, out: tl.tensor, N: tl.tensor, COUNT: tl.constexpr, BN: tl.constexpr
) -> tl.tensor:
    """out [N] of parts [COUNT, N]."""
    place = tl.program_id(0) * BN + tl.arange(0, BN)
    mask = place < N
    total = tl.load(parts + place, mask=mask, other=0.0).to(tl.float32)
    for part in tl.static_range(1, COUNT):
        total += tl.load(parts + part * N + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


def launch(layer: Layer, parts: str, count: int) -> Launch:
    """From the buffer ``parts`` [count, T, d] into the result."""
    numbers = layer.tokens * layer.down
    arguments = {
        "parts": pointer("f32", parts),
        "out": pointer(layer.outer, "y"),
        "N": number(numbers),
    }
    constants = {"COUNT": count, "BN": NUMBERS}
    grid = (divided(numbers, NUMBERS), 1, 1)
    return Launch(
        "add_parts", "add_parts", tuple(arguments.items()), tuple(constants.items()), grid
    )
