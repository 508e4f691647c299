"""Register tiles of ternary products, in integers and in floats, and the panels they read.

A tile adds up a block of k for some rows and vectors of outputs. Its weights are packed, or come
from a panel: those vectors and that block, unpacked once for many rows into the first-level cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from .lanes import Lanes
from .layout_ternary import PLANES, ZERO_BYTE, steps_of
from .tile import Activations, accumulate, zeros
from .tir import Registers, T, broadcast, lane, let, span, store

# weights(step, vector): the bytes of one step of packed weights.
Weights = Callable[[Any, int], Any]


@dataclass(frozen=True)
class Shape:
    """A tile: rows x vectors of packed weights x values of k."""

    rows: int
    vectors: int
    depth: int


class Tiles(Protocol):
    """What differs between integers and floats. Sum i of a row is outputs i * width onwards."""

    # Of a panel and of the sums, as the IR names them.
    panel_dtype: ClassVar[str]
    dtype: ClassVar[str]

    @property
    def lanes(self) -> Lanes: ...

    @property
    def width(self) -> int:
        """Outputs of a vector of sums."""

    @property
    def exact_depth(self) -> int:
        """The most values of k in a tile: whole steps."""

    def fill(self, panel: Any, vectors: int, steps: int, weights: Weights) -> None:
        """Unpack ``steps`` steps of ``vectors`` vectors."""

    def packed(self, shape: Shape, activations: Activations, weights: Weights) -> list[Any]:
        """The sums of a tile of packed weights, row by row."""

    def unpacked(self, shape: Shape, activations: Activations, panel: Any) -> list[Any]:
        """The sums of a tile that reads the panel, row by row."""


def _bytes(lanes: Lanes) -> int:
    return lanes.ternary_outputs * lanes.ternary_depth


@dataclass(frozen=True)
class IntegerTiles:
    """int8 activations by codes (weight + 1): the sums are too large by the sum of the row.

    Activations are read in whole steps, so rows must be padded.
    """

    lanes: Lanes
    panel_dtype: ClassVar[str] = "u8"
    dtype: ClassVar[str] = "i32"

    @property
    def width(self) -> int:
        return self.lanes.ternary_outputs

    @property
    def exact_depth(self) -> int:
        return self.lanes.ternary_block

    def fill(self, panel: Any, vectors: int, steps: int, weights: Weights) -> None:
        size = _bytes(self.lanes)
        with T.serial(steps) as step:
            for v in range(vectors):
                for plane in range(PLANES):
                    codes = self.lanes.ternary_codes(weights(step, v), plane)
                    at = (step * PLANES + plane) * vectors + v
                    store(panel, codes, span(at * size, size))

    def packed(self, shape: Shape, activations: Activations, weights: Weights) -> list[Any]:
        def codes(step: Any, plane: int, v: int) -> Any:
            return self.lanes.ternary_codes(weights(step, v), plane)

        return self._add_up(shape, activations, codes)

    def unpacked(self, shape: Shape, activations: Activations, panel: Any) -> list[Any]:
        size = _bytes(self.lanes)

        def codes(step: Any, plane: int, v: int) -> Any:
            return panel[span(((step * PLANES + plane) * shape.vectors + v) * size, size)]

        return self._add_up(shape, activations, codes)

    def row_sum(self, depth: int, activations: Activations) -> Any:
        """The sum of the activations of row 0 of the tile: what a weight of 0 adds up to."""

        def zero_weight(step: Any, plane: int, v: int) -> Any:
            zero = broadcast(T.uint8(ZERO_BYTE), _bytes(self.lanes))
            return self.lanes.ternary_codes(zero, plane)

        total = self._add_up(Shape(1, 1, depth), activations, zero_weight)[0]
        return lane(let(total, self.width, "int32"), 0, self.width)

    def _add_up(
        self, shape: Shape, activations: Activations, codes: Callable[[Any, int, int], Any]
    ) -> list[Any]:
        lanes, kind = self.lanes, self.lanes.ternary_accumulator
        rows, vectors = shape.rows, shape.vectors
        total = Registers(rows * vectors, lanes.ternary_lanes, kind)
        for i in range(rows * vectors):
            total[i] = broadcast(getattr(T, kind)(0), lanes.ternary_lanes)
        with T.serial(steps_of(shape.depth, lanes.ternary_depth)) as step:
            first = step * (PLANES * lanes.ternary_depth)
            for plane in range(PLANES):
                row = [let(codes(step, plane, v), _bytes(lanes), "uint8") for v in range(vectors)]
                for r in range(rows):

                    def read(k: Any, n: int, r: int = r) -> Any:
                        return activations(r, k, n)

                    x = lanes.ternary_activations(read, first, plane)
                    for v in range(vectors):
                        i = r * vectors + v
                        total[i] = lanes.ternary_mac(total[i], row[v], x)
        return [lanes.ternary_flush(total[i]) for i in range(rows * vectors)]


@dataclass(frozen=True)
class FloatTiles:
    """float32 activations by weights -1.0, 0.0 and 1.0."""

    lanes: Lanes
    panel_dtype: ClassVar[str] = "f32"
    dtype: ClassVar[str] = "f32"

    @property
    def width(self) -> int:
        return self.lanes.float_lanes

    @property
    def exact_depth(self) -> int:
        return 1 << 20

    def fill(self, panel: Any, vectors: int, steps: int, weights: Weights) -> None:
        outputs = self.lanes.ternary_outputs
        group = self.lanes.ternary_depth
        with T.serial(steps) as step:
            for v in range(vectors):
                for k in range(PLANES * group):
                    value = self.lanes.ternary_floats(weights(step, v), k // group, k % group)
                    at = (step * (PLANES * group) + k) * vectors + v
                    store(panel, value, span(at * outputs, outputs))

    def unpacked(self, shape: Shape, activations: Activations, panel: Any) -> list[Any]:
        lanes, width = self.lanes, self.width
        vectors = shape.vectors * lanes.ternary_outputs // width
        total = zeros(lanes, shape.rows, vectors)

        def weights(k: Any, v: int) -> Any:
            return panel[span((k * vectors + v) * width, width)]

        accumulate(lanes, shape.rows, vectors, shape.depth, activations, weights, total)
        return [total[i] for i in range(shape.rows * vectors)]

    def packed(self, shape: Shape, activations: Activations, weights: Weights) -> list[Any]:
        lanes, group = self.lanes, self.lanes.ternary_depth
        assert lanes.ternary_outputs == self.width, f"float tiles of {lanes.name} need a panel"
        rows, vectors = shape.rows, shape.vectors
        total = zeros(lanes, rows, vectors)

        def step(at: Any, count: int) -> None:
            for k in range(count):
                plane, offset = divmod(k, group)
                row = [
                    let(lanes.ternary_floats(weights(at, v), plane, offset), self.width)
                    for v in range(vectors)
                ]
                for r in range(rows):
                    x = broadcast(activations(r, at * (PLANES * group) + k, 1), self.width)
                    for v in range(vectors):
                        i = r * vectors + v
                        total[i] = lanes.multiply_add(total[i], row[v], x)

        whole, rest = divmod(shape.depth, PLANES * group)
        if whole:
            with T.serial(whole) as at:
                step(at, PLANES * group)
        if rest:
            step(whole, rest)
        return [total[i] for i in range(rows * vectors)]
