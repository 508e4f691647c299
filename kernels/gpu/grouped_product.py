"""A standard mixture of experts, to compare with: products of rows with their own expert's weights.

No record: nothing that we compile asks for it. Rows are sorted by expert and cut into tiles of one
expert each; what is read and written is found by index, so no row is copied to be sorted.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from .activations import activate
from .add_parts import NUMBERS
from .common import add_product
from .launch import Argument, Fill, Launch, Plan, Step, Value
from .layer import divided, number, pointer

# What a product does with its sums: store them in sorted order; or gate them and store them by slot
# and token; or gate them and add them to their token.
SORTED, PLACED, ADDED = 0, 1, 2


@triton.jit
def grouped_product(
    rows: tl.tensor,
    order: tl.tensor,
    tile_expert: tl.tensor,
    tile_first: tl.tensor,
    tile_end: tl.tensor,
    weights: tl.tensor,
    gates: tl.tensor,
    out: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    TOKENS: tl.constexpr,
    CHOSEN: tl.constexpr,
    GATHER: tl.constexpr,
    ACTIVATION: tl.constexpr,
    OUT: tl.constexpr,
    EVEN: tl.constexpr,
    SPLIT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    FAST: tl.constexpr,
    ASM: tl.constexpr,
) -> None:
    """Rows times weights [E, N, K]; of a tile ``tile_first`` to ``tile_end`` in ``order``.

    GATHER: rows are of tokens [T, K]; else sorted [R, K]. EVEN: all parts of K are whole tiles.
    """
    # GROUP tiles of rows pass all columns together, so that both stay in the cache.
    columns = (N + BN - 1) // BN
    in_group = GROUP * columns
    before = tl.program_id(0) // in_group * GROUP
    height = tl.minimum(tl.num_programs(0) // columns - before, GROUP)
    tile = before + tl.program_id(0) % in_group % height
    column = tl.program_id(0) % in_group // height * BN + tl.arange(0, BN)
    expert = tl.load(tile_expert + tile)
    # There are tiles for the worst case of rows and experts; most are not needed.
    if expert < 0:
        return
    place = tl.load(tile_first + tile) + tl.arange(0, BM)
    there = place < tl.load(tile_end + tile)
    row = tl.load(order + place, mask=there, other=0)
    source = row // CHOSEN if GATHER else place
    within = column < N
    part = (K + SPLIT * BK - 1) // (SPLIT * BK) * BK
    depth = tl.program_id(1) * part + tl.arange(0, BK)
    left_at = rows + source.to(tl.int64)[:, None] * K + depth[None, :]
    right_at = weights + (expert.to(tl.int64) * N + column[None, :]) * K + depth[:, None]
    sums = tl.full((BM, BN), 0.0, tl.float32)
    for done in range(0, part, BK):
        if EVEN:
            left = tl.load(left_at, mask=there[:, None], other=0.0)
            right = tl.load(right_at, mask=within[None, :], other=0.0)
        else:
            deep = depth + done < K
            left = tl.load(left_at, mask=there[:, None] & deep[None, :], other=0.0)
            right = tl.load(right_at, mask=within[None, :] & deep[:, None], other=0.0)
        sums = add_product(left, right, sums, ASM)
        left_at += BK
        right_at += BK
    sums = activate(sums, ACTIVATION, FAST, ASM)
    mask = there[:, None] & within[None, :]
    if OUT == 0:
        at = out + place.to(tl.int64)[:, None] * N + column[None, :]
        tl.store(at, sums.to(out.dtype.element_ty), mask=mask)
    else:
        sums = sums * tl.load(gates + row, mask=there, other=0.0)[:, None]
        if OUT == 1:
            by_slot = row % CHOSEN * TOKENS + row // CHOSEN
            at = out + by_slot.to(tl.int64)[:, None] * N + column[None, :]
            tl.store(at, sums.to(out.dtype.element_ty), mask=mask)
        else:
            at = out + (row // CHOSEN).to(tl.int64)[:, None] * N + column[None, :]
            tl.atomic_add(at, sums, mask=mask, sem="relaxed")


def most_tiles(rows: int, experts: int, height: int) -> int:
    """Tiles of ``height`` rows, however many rows each expert has."""
    return min(rows, rows // height + min(experts, rows))


def product(
    way: Mapping[str, int], dtype: str, rows: str, weights: str, out: Argument, mode: int,
    sizes: tuple[int, int, int, int], chosen: int, activation: str, split: int,
) -> Launch:  # fmt: skip
    """One product of ``sizes`` rows, experts, N, K."""
    count, experts, width, depth = sizes
    tiles = most_tiles(count, experts, way["rows"])
    indices = ("order", "tile_expert", "tile_first", "tile_end")
    arguments = {
        "rows": pointer(dtype, rows),
        **{name: pointer("i32", name) for name in indices},
        "weights": pointer(dtype, weights),
        "gates": pointer("f32", "gates"),
        "out": out,
        "N": number(width),
        "K": number(depth),
    }
    constants: dict[str, Value] = {
        # Where nothing depends on it one compiled kernel serves all numbers of tokens.
        "TOKENS": count // chosen if mode == PLACED else 0,
        "CHOSEN": chosen,
        "GATHER": rows == "x",
        "ACTIVATION": activation,
        "OUT": mode,
        "EVEN": depth % (split * way["depth"]) == 0,
        "SPLIT": split,
        "BM": way["rows"],
        "BN": way["outputs"],
        "BK": way["depth"],
        "GROUP": 8,
        "FAST": dtype != "f32",
        "ASM": True,
    }
    return Launch(
        "grouped_product",
        "grouped_product",
        tuple(arguments.items()),
        tuple(constants.items()),
        (tiles * divided(width, way["outputs"]), split, 1),
        way["warps"],
        way["stages"],
    )


def plan(
    way: Mapping[str, int], tokens: int, chosen: int, experts: int, channels: int, outputs: int,
    dtype: str,
) -> Plan:  # fmt: skip
    """The mixture of x [T, d], by ``hidden`` [R, F] and ``placed`` [k, T, d].

    ``way`` has ``split``: 0 to place rows and add them in order, else into how many parts K of the
    second product is cut, which are added as they come, to y of float32.
    """
    count, split = tokens * chosen, way["split"]
    sizes = (count, experts, outputs, channels), (count, experts, channels, outputs)
    up = product(
        way, dtype, "x", "up", pointer(dtype, "hidden"), SORTED, sizes[0], chosen, "gelu", 1
    )
    out, mode = (pointer("f32", "y"), ADDED) if split else (pointer(dtype, "placed"), PLACED)
    down = product(way, dtype, "hidden", "down", out, mode, sizes[1], chosen, "none", max(split, 1))
    if split:
        return Plan((Fill("y"), up, down))
    steps: tuple[Step, ...] = (up, down, _add(tokens, chosen, channels, dtype))
    return Plan(steps)


def _add(tokens: int, chosen: int, channels: int, dtype: str) -> Launch:
    """The rows of each token, which lie by slot."""
    numbers = tokens * channels
    arguments = {
        "parts": pointer(dtype, "placed"),
        "out": pointer(dtype, "y"),
        "N": number(numbers),
    }
    constants: dict[str, Value] = {"COUNT": chosen, "BN": NUMBERS}
    grid = (divided(numbers, NUMBERS), 1, 1)
    return Launch(
        "add_parts", "add_parts", tuple(arguments.items()), tuple(constants.items()), grid
    )


def space(tokens: int) -> tuple[Mapping[str, int], ...]:
    """The ways worth trying: flat tiles for few rows, square ones for many."""
    small = ((16, 64, 128, 4, 4), (16, 128, 64, 4, 4), (16, 32, 256, 4, 3), (16, 64, 256, 8, 3))
    large = ((128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (64, 128, 64, 4, 4), (64, 256, 64, 8, 3))
    tiles, splits = (small, (0, 1, 4, 8)) if tokens <= 64 else (large, (0, 1))
    names = ("rows", "outputs", "depth", "warps", "stages")
    return tuple(
        {**dict(zip(names, tile, strict=True)), "split": split}
        for tile in tiles
        for split in splits
    )
