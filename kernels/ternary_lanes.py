"""How a vector unit multiplies by ternary weights: int8 activations in integers, or floats.

A step of packed weights (layout ``ternaryOxD``) holds ``outputs`` outputs and, in each of its four
planes, ``depth`` consecutive values of k. A step is read with ``read(at, n)``: n bytes from byte
``at``. The records here are portable: one number at a time, no intrinsic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .layout_ternary import PLANES
from .tir import T, broadcast, cast, constant, let

# read(at, n): n consecutive bytes of a step's weights from byte ``at``.
Read = Callable[[int, int], Any]
# load(k, n): n consecutive activations of one row, from k.
Load = Callable[[Any, int], Any]


@dataclass(frozen=True)
class Dot:
    """int8 activations by weights, which are codes = weight + ``offset``, in integers.

    One row and one step's outputs are added up in ``registers`` accumulators of ``lanes`` x
    ``dtype``. They start at zero and are exact for ``block`` values of k, which are whole steps.
    """

    outputs: int = 1
    depth: int = 1
    # Vectors that a plane's codes are.
    parts: int = 1
    registers: int = 1
    lanes: int = 1
    dtype: str = "int32"
    # int32 holds 2**31 / (2 * 127) products; this merely keeps loops in int32.
    block: int = 1 << 20
    # Sums are too large by offset times the sum of the row.
    offset: int = 1
    # As which a panel holds the codes.
    stored: str = "u8"

    @property
    def bytes(self) -> int:
        """Bytes of a step of packed weights, and of one plane of it in a panel."""
        return self.outputs * self.depth

    @property
    def step(self) -> int:
        """Values of k of a step."""
        return PLANES * self.depth

    def codes(self, read: Read, plane: int) -> Sequence[Any]:
        """The codes of one plane of packed weights, as ``add`` takes them, or a panel."""
        shifted = T.shift_right(read(0, 1), T.uint8(2 * plane))
        return [T.bitwise_and(shifted, T.uint8(3))]

    def panel(self, read: Read) -> Sequence[Any]:
        """The same from a panel, in which they lie one after another."""
        return [read(0, self.bytes)]

    def activations(self, load: Load, first: Any, plane: int) -> Any:
        """The activations that meet one plane's codes; ``first`` is the step's first k.

        A record may read all of the step's values.
        """
        return T.Cast("int32", load(first + plane, 1))

    def add(
        self, totals: Sequence[Any], codes: Sequence[Any], activations: Any, plane: int
    ) -> dict[int, Any]:
        """The accumulators that one plane changes, by number, with its products added."""
        return {0: totals[0] + T.Cast("int32", codes[0]) * activations}

    def tile(
        self,
        rows: int,
        steps: int,
        weights: Sequence[Read],
        activations: Callable[[int, Any, int], Any],
    ) -> Sequence[Any] | None:
        """The sums of a whole tile, row by row, from a unit that has code of its own for it.

        ``weights`` read the first step of each vector, as packed or the first plane of a panel, and
        ``activations(row, k, n)`` rows; both load from memory. With None, a loop adds up.
        """
        return None

    def sums(self, totals: Sequence[Any]) -> Any:
        """The accumulators as int32 x ``outputs``: one sum an output."""
        return totals[0]


@dataclass(frozen=True)
class FloatWeights:
    """Ternary weights as floats, in vectors of ``width``."""

    outputs: int = 1
    depth: int = 1
    width: int = 1

    def floats(self, read: Read, k: int) -> Sequence[Any]:
        """The weights -1.0, 0.0 or 1.0 of value ``k`` of a step: one vector after another."""
        plane, at = divmod(k, self.depth)
        shifted = T.shift_right(read(at, 1), T.uint8(2 * plane))
        codes = T.bitwise_and(shifted, T.uint8(3))
        return [cast("float32", codes, 1) - constant(1, 1)]


@dataclass(frozen=True)
class Tables:
    """Activations of 7 bits, two at a time, by tables of the nine sums that two weights make.

    The sums of a pair are within -126..126 and lie in int8 x 16. Weights (layout ``pairsO``) are
    the numbers of sums, ``lanes`` outputs at a time. Sums of int16 are exact for ``block`` columns:
    256 pairs, and 256 * 126 = 32256 < 32768.
    """

    # A strip of packed weights: those of a tile.
    outputs: int
    # Of a look-up, and what they do to a table.
    lanes: int
    look_up: Callable[[Any, Any], Any]
    # Rows of a tile.
    rows: int
    # For costs: products a cycle, where `Dot` would do 8.
    rate: float
    block: int = 512


@dataclass(frozen=True)
class Ternary:
    """The ternary products of a vector unit, and the sizes of their tiles: (rows, vectors).

    A vector are the outputs of a step. ``packed`` and ``unpacked`` weights are packed alike.
    """

    packed: Dot = field(default_factory=Dot)
    # What reads a panel.
    unpacked: Dot = field(default_factory=Dot)
    floats: FloatWeights = field(default_factory=FloatWeights)
    # Of one row, and of more, where there are look-ups.
    one_row_tables: Tables | None = None
    tables: Tables | None = None
    # A tile of one row, of a few, and of many that read a panel.
    one_row: tuple[int, int] = (1, 4)
    few_rows: tuple[int, int] = (4, 4)
    many_rows: tuple[int, int] = (1, 4)
    # So many rows are many.
    panel_rows: int = 5
    # Other tiles of many rows, and other vectors of a few, that are worth trying.
    tiles: tuple[tuple[int, int], ...] = ((4, 2), (6, 2), (3, 2), (2, 4), (4, 1), (8, 1))
    vectors: tuple[int, ...] = (1, 2, 4, 8)


def named(values: Sequence[Any], lanes: int, dtype: str) -> list[Any]:
    """Each of ``values`` computed once, here."""
    return [let(value, lanes, dtype) for value in values]


def zeros(dot: Dot) -> Any:
    """An accumulator of ``dot`` before anything was added."""
    return broadcast(getattr(T, dot.dtype)(0), dot.lanes)
