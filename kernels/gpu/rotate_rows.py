"""Rotates the row of every token for each of its experts, and rounds it for the product."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import code, inverse_of, join_members, row_maximum, split_members, turn
from .launch import Launch
from .layer import Layer, divided, number, plain, pointer, power_of_two

# Channels of a program, at most; one of codes has the whole row, for its largest magnitude.
MOST_COLUMNS = 1024
MOST_CODES = 16384
# Numbers of a program, about.
NUMBERS = 2048


@triton.jit
def rotate_rows(
    x: tl.tensor,
    experts: tl.tensor,
    pairs: tl.tensor,
    rows: tl.tensor,
    row_scales: tl.tensor,
    R: tl.tensor,
    D: tl.tensor,
    GROUPS: tl.tensor,
    CHOSEN: tl.constexpr,
    ORDER: tl.constexpr,
    CODES: tl.constexpr,
    PLANAR: tl.constexpr,
    BM: tl.constexpr,
    BG: tl.constexpr,
) -> tl.tensor:
    """rows [R, 4 GROUPS] of x [R / CHOSEN, D], zero from D on; R = tokens * CHOSEN.

    PLANAR: all first members of groups, then all second ones, and so on.
    """
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    group = tl.program_id(1) * BG + tl.arange(0, BG)
    column = tl.program_id(1) * (4 * BG) + tl.arange(0, 4 * BG)
    there = row < R
    expert = tl.load(experts + row, mask=there, other=0).to(tl.int32)
    token = (row // CHOSEN).to(tl.int64)
    here = there[:, None] & (column < D)[None, :]
    values = tl.load(x + token[:, None] * D + column[None, :], mask=here, other=0.0)
    x0, x1, x2, x3 = split_members(values.to(tl.float32), BM, BG)
    # Behind the last group cosines and sines are 0, and so is what they give.
    first = (expert[:, None] * (D // 4) + group[None, :]) * 4
    turned = there[:, None] & (group * 4 < D)[None, :]
    x0, x1, x2, x3 = turn(x0, x1, x2, x3, pairs, first, turned, ORDER, BM, BG)
    if CODES:
        largest = row_maximum(x0, x1, x2, x3)
        tl.store(row_scales + row, largest * 0.007874015748031496, mask=there)
        inverse = inverse_of(largest, BM)
        x0, x1 = code(x0, inverse), code(x1, inverse)
        x2, x3 = code(x2, inverse), code(x3, inverse)
    dtype = rows.dtype.element_ty
    start = rows + row.to(tl.int64)[:, None] * (4 * GROUPS)
    if PLANAR:
        inside = there[:, None] & (group < GROUPS)[None, :]
        start += group[None, :]
        tl.store(start, x0.to(dtype), mask=inside)
        tl.store(start + GROUPS, x1.to(dtype), mask=inside)
        tl.store(start + 2 * GROUPS, x2.to(dtype), mask=inside)
        tl.store(start + 3 * GROUPS, x3.to(dtype), mask=inside)
    else:
        inside = there[:, None] & (column < 4 * GROUPS)[None, :]
        joined = join_members(x0.to(dtype), x1.to(dtype), x2.to(dtype), x3.to(dtype), BM, BG)
        tl.store(start + column[None, :], joined, mask=inside)


def supports(layer: Layer) -> bool:
    """Whether one program can hold what it must."""
    return not layer.codes or layer.channels <= MOST_CODES


def launch(layer: Layer, rows: str, scales: str, width: int, planar: bool) -> Launch:
    """Into the buffers ``rows`` [R, width] and ``scales`` [R]."""
    columns = power_of_two(width) if layer.codes else min(power_of_two(width), MOST_COLUMNS)
    # Pairs of float32 take twice the registers.
    numbers = NUMBERS // 2 if layer.operands["pairs_in"].dtype == "f32" else NUMBERS
    height = max(1, numbers // columns)
    arguments = {
        "x": layer.buffer("x"),
        "experts": layer.buffer("experts"),
        "pairs": layer.buffer("pairs_in"),
        "rows": pointer(layer.row_dtype, rows),
        "row_scales": layer.row_scales(scales),
        "R": plain(layer.rows),
        "D": number(layer.channels),
        "GROUPS": number(width // 4),
    }
    constants = {
        "CHOSEN": layer.chosen,
        "ORDER": layer.order_in,
        "CODES": layer.codes,
        "PLANAR": planar,
        "BM": height,
        "BG": columns // 4,
    }
    grid = (divided(layer.rows, height), divided(width, columns), 1)
    warps = 4 if height * columns <= 2 * numbers else 16
    return Launch(
        "rotate_rows",
        "rotate_rows",
        tuple(arguments.items()),
        tuple(constants.items()),
        grid,
        warps,
    )
