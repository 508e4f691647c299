"""NEON of AArch64 for cores that execute in order: blocks of ternary products as assembly.

LLVM's order suits such cores badly: short loads stand between long products and wait for them, and
registers spill. So a block of a tile, of at most 256 values of k, is one piece of assembly, in an
order of our own. What is stored and computed is the same as for other cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ..kernels.layout_ternary import PLANES
from ..kernels.ternary_lanes import Read, Tables, Ternary
from .assembly import Assembly, address, call
from .in_order import CORTEX_A53
from .lanes_neon import LONG_TERNARY, Long, LongInPlace, Neon, sums_of_16

OUTPUTS = 4
# What registers suffice for, and what sums are exact for.
VECTORS, ROWS, STEPS = 4, 4, 4
# Sums that are 4 and 16 times too large are then complete before the others.
PLANE_ORDER = (1, 0, 2, 3)
MASK, TOP = "and {0}.16b, {1}.16b, {2}.16b", "ushr {0}.16b, {1}.16b, #6"


@cache
def packed_tile(vectors: int, steps: int) -> Assembly:
    """One row by ``vectors`` of packed weights; pointers: to each of them, to each half of a step.

    Codes are masked and not shifted, as those of `LongInPlace`. Of 256 values of k a lane takes
    eight products of each plane, of at most 254. So sums that are 16 times too large stay within
    8 * 16 * 254 = 32512, all of a lane's together within 32 * 254 = 8128, and four lanes 32512.
    """
    made = Assembly(vectors + 2 * steps)
    totals, weights, values, masks = range(12), 12, 16, range(29, 32)
    results, spare = range(30 - vectors, 29), range(20, 30 - vectors)
    for plane, mask in enumerate(masks):
        made.neon(f"movi {{0}}.16b, #{3 << (2 * plane)}", mask)
    pointers = [made.pointer() for _ in range(1, steps)]
    codes = 0
    for vector in range(vectors):
        behind = f"vector {vector - 1}"
        for step, pointer in enumerate(pointers, 1):
            made.point(pointer, f"%{vector}", 64 * step, behind)
        for step, pointer in enumerate([f"%{vector}", *pointers]):
            made.load(weights, 4, pointer, f"vector {vector}")
            for half in (0, 1):
                made.load(values + 2 * half, 2, f"%{vectors + 2 * step + half}")
            for plane in PLANE_ORDER:
                for output in range(OUTPUTS):
                    code = spare[codes % len(spare)]
                    codes += 1
                    if plane == 3:
                        made.neon(TOP, code, weights + output)
                    else:
                        made.neon(MASK, code, weights + output, masks[plane])
                    total = totals[3 * output + plane % 3]
                    made.products(total, code, values + plane, step == 0 and plane < 3)
        for output in range(OUTPUTS):
            plain, by_4, by_16 = totals[3 * output : 3 * output + 3]
            made.neon("ssra {0}.8h, {1}.8h, #2", by_4, by_16, adds=True)
            made.neon("ssra {0}.8h, {1}.8h, #2", plain, by_4, adds=True)
        made.sums((*results, totals[0])[vector], totals[::3])
    return made


@cache
def panel_tile(rows: int, steps: int) -> Assembly:
    """``rows`` by a vector of weights -1, 0 and 1; pointers: to the panel, and to each row.

    Of 256 values of k four lanes add up 128 products, which are at most 128 * 127 = 16256.
    """
    made = Assembly(1 + rows)
    weights, values = (16, 20), [24 + 2 * r for r in range(rows)]
    panel = [made.pointer() for _ in range(PLANES)]
    halves = [[made.pointer() for _ in range(rows)] for _ in (0, 1)]
    for plane, pointer in enumerate(panel):
        made.point(pointer, "%0", 64 * plane)
    for half, of_rows in enumerate(halves):
        for r, pointer in enumerate(of_rows):
            made.point(pointer, f"%{1 + r}", 32 * half)
    for step in range(steps):
        for plane in range(PLANES):
            codes = weights[plane % 2]
            made.load(codes, 4, panel[plane], f"step {step}")
            for r in range(rows):
                if plane % 2 == 0:
                    made.load(values[r], 2, halves[plane // 2][r], f"step {step}")
                for output in range(OUTPUTS):
                    value, first = values[r] + plane % 2, step == plane == 0
                    made.products(4 * r + output, codes + output, value, first)
        if step + 1 < steps:
            for pointers, offset in ((panel, 256), *((half, 64) for half in halves)):
                for pointer in pointers:
                    made.point(pointer, pointer, offset, f"step {step}")
    for r in range(rows):
        made.sums(4 * r, range(4 * r, 4 * r + 4))
    return made


@cache
def packed_function(vectors: int, steps: int) -> tuple[str, str]:
    """`packed_tile` as a function: its name and IR."""
    name = f"butterflyc_packed_{vectors}x{steps}"
    return name, packed_tile(vectors, steps).function(name, CORTEX_A53)


@cache
def panel_function(rows: int, steps: int) -> tuple[str, str]:
    """`panel_tile` as a function: its name and IR."""
    name = f"butterflyc_panel_{rows}x{steps}"
    return name, panel_tile(rows, steps).function(name, CORTEX_A53)


@dataclass(frozen=True)
class PackedInOrder(LongInPlace):
    """`LongInPlace` with assembly for tiles of one row."""

    def tile(
        self,
        rows: int,
        steps: int,
        weights: Sequence[Read],
        activations: Callable[[int, Any, int], Any],
    ) -> Sequence[Any] | None:
        vectors = len(weights)
        if rows > 1 or vectors > VECTORS or steps > STEPS:
            return None
        pointers = [address(read(0, self.bytes)) for read in weights]
        pointers += [address(activations(0, 32 * i, 32)) for i in range(2 * steps)]
        return call(*packed_function(vectors, steps), vectors, pointers)


@dataclass(frozen=True)
class PanelInOrder(Long):
    """`Long` with assembly for tiles of few rows by one vector."""

    block: int = 256

    def tile(
        self,
        rows: int,
        steps: int,
        weights: Sequence[Read],
        activations: Callable[[int, Any, int], Any],
    ) -> Sequence[Any] | None:
        if rows > ROWS or len(weights) > 1 or steps > STEPS:
            return None
        pointers = [address(weights[0](0, self.bytes))]
        pointers += [address(activations(r, 0, 32)) for r in range(rows)]
        return call(*panel_function(rows, steps), rows, pointers)


IN_ORDER_TERNARY = replace(
    LONG_TERNARY,
    packed=PackedInOrder(),
    unpacked=PanelInOrder(),
    # A look-up of 16 bytes is one instruction here.
    tables=Tables(32, 16, sums_of_16, rows=4, rate=10),
    one_row=(1, VECTORS),
    few_rows=(1, VECTORS),
    many_rows=(ROWS, 1),
    panel_rows=4,
    vectors=(1, 2, 4),
)


@dataclass(frozen=True)
class NeonInOrder(Neon):
    """NEON of AArch64 without dot products, as the Cortex-A53 has it."""

    name: str = "neon-in-order"
    ternary: Ternary = IN_ORDER_TERNARY
