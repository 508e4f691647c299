"""Rotates the row of every token for each of its experts, in any number of layers.

A program has whole rows, since any channel may be the partner of any other.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..record import Tensor
from .common import code, inverse_of, turn_layers
from .launch import Gpu, Launch
from .layer import Layer, divided, number, plain, pointer, power_of_two

# Channels of a row at most: a program has whole rows in its registers.
MOST_COLUMNS = 8192
# Numbers of a program at least, and at most those that eight warps hold; sixteen have more.
NUMBERS, OF_EIGHT_WARPS = 1024, 1024
# Programs of a multiprocessor at most; each goes on with another row when it is done with one.
PROGRAMS = 4


@triton.jit
def turn_rows(
    x: tl.tensor,
    experts: tl.tensor,
    pairs: tl.tensor,
    partners: tl.tensor,
    places: tl.tensor,
    rows: tl.tensor,
    row_scales: tl.tensor,
    R: tl.tensor,
    K: tl.tensor,
    D: tl.tensor,
    WIDTH: tl.tensor,
    LAYERS: tl.tensor,
    CHOSEN: tl.constexpr,
    CODES: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
) -> tl.tensor:
    """rows [R, WIDTH] of x [R / CHOSEN, K], whose channels from K to D begin as zeros.

    R = tokens * CHOSEN; zero from D on.
    """
    column = tl.arange(0, BD)
    place = places + (tl.program_id(0) * BM + tl.arange(0, BM))[:, None] * BD
    for tile in range(tl.program_id(0), (R + BM - 1) // BM, tl.num_programs(0)):
        row = tile * BM + tl.arange(0, BM)
        there = row < R
        expert = tl.load(experts + row, mask=there, other=0).to(tl.int32)
        token = (row // CHOSEN).to(tl.int64)
        here = there[:, None] & (column < K)[None, :]
        values = tl.load(x + token[:, None] * K + column[None, :], mask=here, other=0.0)
        values = turn_layers(
            values.to(tl.float32), pairs, partners, place, expert, there, column, D, LAYERS
        )
        if CODES:
            largest = tl.reduce(tl.abs(values), 1, tl.standard._elementwise_max)
            tl.store(row_scales + row, largest * 0.007874015748031496, mask=there)
            values = code(values, inverse_of(largest, BM))
        inside = there[:, None] & (column < WIDTH)[None, :]
        start = rows + row.to(tl.int64)[:, None] * WIDTH
        tl.store(start + column[None, :], values.to(rows.dtype.element_ty), mask=inside)


def launch(layer: Layer, gpu: Gpu, rows: str, scales: str, places: str, width: int) -> Launch:
    """Into the buffers ``rows`` [R, width] and ``scales`` [R], by way of `places_of` ``width``."""
    height, columns = tile_of(width)
    turned = layer.operands["partners_in"].shape
    arguments = {
        "x": layer.buffer("x"),
        "experts": layer.buffer("experts"),
        "pairs": layer.buffer("pairs_in"),
        "partners": layer.buffer("partners_in"),
        "places": pointer("f32", places),
        "rows": pointer(layer.row_dtype, rows),
        "row_scales": layer.row_scales(scales),
        "R": plain(layer.rows),
        "K": number(layer.channels),
        "D": number(turned[1]),
        "WIDTH": number(width),
        "LAYERS": plain(turned[0]),
    }
    constants = {"CHOSEN": layer.chosen, "CODES": layer.codes, "BM": height, "BD": columns}
    return Launch(
        "turn_rows",
        "turn_rows",
        tuple(arguments.items()),
        tuple(constants.items()),
        (programs_of(gpu, layer.rows, width), 1, 1),
        8 if columns <= OF_EIGHT_WARPS else 16,
    )


def tile_of(width: int) -> tuple[int, int]:
    """Rows and channels that a program has at a time, for rows of ``width``."""
    columns = power_of_two(width)
    return max(1, NUMBERS // columns), columns


def programs_of(gpu: Gpu, rows: int, width: int) -> int:
    return min(divided(rows, tile_of(width)[0]), PROGRAMS * gpu.multiprocessors)


def places_of(gpu: Gpu, rows: int, width: int) -> Tensor:
    """Where programs write their rows for partners to be read."""
    height, columns = tile_of(width)
    return Tensor("f32", (programs_of(gpu, rows, width) * height, columns))
