"""NEON with dot products for cores that execute in order: blocks of ternary products as assembly.

See ``lanes_in_order.py``. Here what is short, masks and loads, is gathered between dot products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ..kernels.layout_ternary import PLANES
from ..kernels.ternary_lanes import Read, Ternary
from .assembly import Assembly, address, call
from .in_order import CORTEX_A55
from .lanes_in_order import MASK, TOP
from .lanes_neon import SDOT_TERNARY, NeonDot, Sdot, SdotPanel

# What registers suffice for, and what code is not too long for.
VECTORS, ROWS, PANEL_VECTORS, STEPS = 4, 8, 2, 16
PAIR = 2
DOT = "sdot {{0}}.4s, {{1}}.16b, {{2}}.4b[{plane}]"


@cache
def packed_tile(vectors: int, steps: int) -> Assembly:
    """One row by ``vectors`` of packed weights; pointers: to each of them, and to the row.

    Two vectors and two steps at a time, whose codes are masked and not shifted, as in `Sdot`.
    """
    made = Assembly(vectors + 1)
    masks, results = range(29, 32), range(27, 29)
    weights, values, spare = range(6, 10), range(10, 12), range(12, 24)
    for plane, mask in enumerate(masks):
        made.neon(f"movi {{0}}.16b, #{3 << (2 * plane)}", mask)
    for first in range(0, vectors, PAIR):
        pair = range(first, min(first + PAIR, vectors))
        for v in range(3 * len(pair)):
            made.neon("movi {0}.4s, #0", v)
        for start in range(0, steps, PAIR):
            both = range(start, min(start + PAIR, steps))
            _packed_steps(made, pair, both, weights, values, spare, masks)
        for v in range(len(pair)):
            plain, by_4, by_16 = range(3 * v, 3 * v + 3)
            made.neon("ssra {0}.4s, {1}.4s, #2", by_4, by_16, adds=True)
            made.neon("ssra {0}.4s, {1}.4s, #2", plain, by_4, adds=True)
            if pair.stop < vectors:
                made.neon("mov {0}.16b, {1}.16b", results[v], plain, kind="mask")
            made.results.append(results[v] if pair.stop < vectors else plain)
    return made


def _packed_steps(
    made: Assembly,
    vectors: range,
    steps: range,
    weights: range,
    values: range,
    spare: range,
    masks: range,
) -> None:
    """The products of up to two vectors and steps: loads, masks, and dot products by them."""
    held = [(v, s) for s in range(len(steps)) for v in range(len(vectors))]
    for i, (v, s) in enumerate(held):
        made.load_at(weights[i], f"%{vectors[v]}", 16 * steps[s])
    for s, step in enumerate(steps):
        made.load_at(values[s], f"%{made.pointers - 1}", 16 * step)
    codes = {}
    for plane in range(PLANES):
        for i, (v, s) in enumerate(held):
            if plane < 3:
                codes[plane, v, s] = code = spare[len(held) * plane + i]
                made.neon(MASK, code, weights[i], masks[plane], kind="mask")
            else:
                codes[plane, v, s] = weights[i]
                made.neon(TOP, weights[i], weights[i], kind="shift")
    for plane in range(PLANES):
        for v, s in held:
            total = 3 * v + plane % 3
            made.neon(DOT.format(plane=plane), total, codes[plane, v, s], values[s], adds=True)


@cache
def panel_tile(rows: int, vectors: int, steps: int) -> Assembly:
    """``rows`` by ``vectors`` of weights -1, 0 and 1; pointers: to the panel, and to each row."""
    made = Assembly(1 + rows)
    values = range(16, 24)
    weights = range(24, 32)
    for total in range(rows * vectors):
        made.neon("movi {0}.4s, #0", total)
    for step in range(steps):
        for r in range(rows):
            made.load_at(values[r], f"%{1 + r}", 16 * step)
        for plane in range(PLANES):
            for v in range(vectors):
                place = plane * vectors + v
                made.load_at(weights[place], "%0", 16 * (PLANES * vectors * step + place))
                for r in range(rows):
                    dot = DOT.format(plane=plane)
                    made.neon(dot, r * vectors + v, weights[place], values[r], adds=True)
    made.results = list(range(rows * vectors))
    return made


@cache
def packed_function(vectors: int, steps: int) -> tuple[str, str]:
    """`packed_tile` as a function: its name and IR."""
    name = f"butterflyc_packed_dot_{vectors}x{steps}"
    return name, packed_tile(vectors, steps).function(name, CORTEX_A55)


@cache
def panel_function(rows: int, vectors: int, steps: int) -> tuple[str, str]:
    """`panel_tile` as a function: its name and IR."""
    name = f"butterflyc_panel_dot_{rows}x{vectors}x{steps}"
    return name, panel_tile(rows, vectors, steps).function(name, CORTEX_A55)


@dataclass(frozen=True)
class PackedInOrderDot(Sdot):
    """`Sdot` with assembly for tiles of one row."""

    block: int = 256

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
        pointers.append(address(activations(0, 0, self.bytes)))
        return call(*packed_function(vectors, steps), vectors, pointers)


@dataclass(frozen=True)
class PanelInOrderDot(SdotPanel):
    """`SdotPanel` with assembly for tiles of up to eight rows by two vectors."""

    block: int = 256

    def tile(
        self,
        rows: int,
        steps: int,
        weights: Sequence[Read],
        activations: Callable[[int, Any, int], Any],
    ) -> Sequence[Any] | None:
        vectors = len(weights)
        if rows > ROWS or vectors > PANEL_VECTORS or steps > STEPS:
            return None
        pointers = [address(weights[0](0, self.bytes))]
        pointers += [address(activations(r, 0, self.bytes)) for r in range(rows)]
        return call(*panel_function(rows, vectors, steps), rows * vectors, pointers)


IN_ORDER_DOT_TERNARY = replace(
    SDOT_TERNARY,
    packed=PackedInOrderDot(),
    unpacked=PanelInOrderDot(),
    few_rows=(1, VECTORS),
    panel_rows=4,
)


@dataclass(frozen=True)
class NeonDotInOrder(NeonDot):
    """NEON of AArch64 with dot products, as the Cortex-A55 has it."""

    name: str = "neon-dotprod-in-order"
    ternary: Ternary = IN_ORDER_DOT_TERNARY
