"""Integer mode's products, four columns at a time, where two are multiplied at once (smlad).

Four codes are one word. Its bytes 0 and 2 become the halves of one word, bytes 1 and 3 those of
another, and so do the bytes of the weights, so that halves that meet belong together. The rows of
a tile are spread so once, for all outputs.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from .integer import is_plain, once
from .integer_products import (
    LINEAR,
    ROWS,
    Tile,
    add_products,
    linear,
    possible,
    rotate,
    tile_knobs,
    tile_plan,
)
from .integer_products import scratch as sums_scratch
from .lanes import Lanes
from .record import Kernel, Spec, Tensor
from .tir import Registers, T, loop, store

WORD = 4
# Outputs of a tile without parameters.
OUTPUTS = 2
SPREAD = "sxtb16", "sxtb16_ror8"


def halves(buffer: Any, at: Any) -> list[Any]:
    """Four codes as two words of two each."""
    four = once(T.call_pure_extern("int32", "load4", T.address_of(buffer[at])), "four")
    return [T.call_pure_extern("int32", name, four) for name in SPREAD]


@dataclass(frozen=True)
class Pairs(Tile):
    """Sums by words, ``turn`` of them in a turn; what is left of the columns one by one."""

    turn: int = 1

    def start(self, rows: Sequence[Any]) -> None:
        (spread,) = self.scratch
        words = self.depth // WORD
        with loop("word", words) as word:
            for r, row in enumerate(rows):
                for i, half in enumerate(halves(self.x, row + word * WORD)):
                    store(spread, half, (r * words + word) * 2 + i)

    def add(self, sums: Registers, rows: Sequence[Any], outputs: Sequence[Any]) -> None:
        words = self.depth // WORD
        with loop("words", words // self.turn) as turns:
            for i in range(self.turn):
                self._add_word(sums, len(rows), outputs, turns * self.turn + i)
        if left := self.depth % WORD:
            first = words * WORD
            starts = [[start + first for start in starts] for starts in (rows, outputs)]
            add_products(sums, self.x, starts[0], self.w, starts[1], left)

    def _add_word(self, sums: Registers, rows: int, outputs: Sequence[Any], word: Any) -> None:
        (spread,) = self.scratch
        words = self.depth // WORD
        codes = [
            [once(spread[(r * words + word) * 2 + i], "pair") for i in (0, 1)] for r in range(rows)
        ]
        for n, output in enumerate(outputs):
            weights = [once(half, "weights") for half in halves(self.w, output + word * WORD)]
            for r, row_codes in enumerate(codes):
                at = r * len(outputs) + n
                for a, b in zip(row_codes, weights, strict=True):
                    sums[at] = T.call_pure_extern("int32", "smlad", a, b, sums[at])


def spread_rows(rows: int, depth: int) -> Tensor:
    """What `Pairs` keeps of so many rows."""
    return Tensor("i32", (rows * (depth // WORD) * 2,))


def scratch(spec: Spec, lanes: Lanes) -> tuple[Tensor, ...]:
    """The rows of a tile, spread; and their sums."""
    if spec.op == "integer_rotate":
        return ()
    rows = min(spec.parameter("rows", ROWS), prod(spec.operands[0].shape[:-1]))
    return spread_rows(rows, spec.operands[1].shape[1]), *sums_scratch(spec, lanes)


def turned_pairs(blocks: Any, block: Any, x: Any, start: Any, size: int) -> list[Any]:
    """A block of 4 x 4 times four codes of x, which become pairs of neighbours."""
    even, odd = (once(half, "halves") for half in halves(x, start))
    joined = (T.call_pure_extern("int32", f"{end}_halves", even, odd) for end in ("low", "high"))
    pairs = [once(pair, "pair") for pair in joined]

    def row(i: int) -> Any:
        total: Any = T.int32(0)
        for j, pair in enumerate(pairs):
            at = T.address_of(blocks[block + i * size + 2 * j])
            factors = T.call_pure_extern("int32", "load2", at)
            total = T.call_pure_extern("int32", "smlad", factors, pair, total)
        return total

    return [row(i) for i in range(size)]


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    if spec.op == "integer_rotate":
        return rotate(spec, lanes, name, turned_pairs)
    form = partial(Pairs, turn=_turn(spec))
    return linear(spec, lanes, name, form, _outputs(spec), scratch(spec, lanes))


def _outputs(spec: Spec) -> int:
    return spec.parameter("outputs", OUTPUTS)


def _words(spec: Spec) -> int:
    return spec.operands[1].shape[1] // WORD


def _turn(spec: Spec) -> int:
    """Words of a turn: they divide those of a row."""
    return spec.parameter("turn", 1 if _words(spec) % 2 else 2)


def supports(spec: Spec, lanes: Lanes) -> bool:
    if not lanes.pairs or not is_plain(spec):
        return False
    if spec.op not in LINEAR:
        return spec.operands[1].shape[-1] == WORD
    fits = spec.operands[1].shape[1] >= WORD and possible(spec, _outputs(spec))
    return fits and _words(spec) % _turn(spec) == 0


def knobs(spec: Spec, lanes: Lanes) -> Mapping[str, tuple[int, ...]]:
    if spec.op not in LINEAR:
        return {}
    return {**tile_knobs(spec), "turn": (1, 2, 4)}


def plan(spec: Spec, lanes: Lanes) -> Hashable:
    return spec.op in LINEAR and (tile_plan(spec, _outputs(spec)), _turn(spec))


def cost(spec: Spec, lanes: Lanes) -> float:
    return 1.5 * prod(spec.results[0].shape) * spec.operands[1].shape[-1]


KERNEL = Kernel(
    "integer_pairs",
    ("integer_linear", "quantized_linear", "integer_rotate"),
    supports,
    build,
    cost,
    scratch,
    knobs=knobs,
    plan=plan,
    numbers=("drop", "shift"),
    ignored=("planes",),
)
