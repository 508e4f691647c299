"""Register tiles of ternary products, in integers and in floats, and the panels they read.

A tile adds up a block of k for some rows and vectors of outputs. Its weights are packed, or come
from a panel: those vectors and that block, unpacked once for many rows into the first-level cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from .lanes import Lanes
from .layout_ternary import PLANES, ZERO_BYTE, steps_of
from .ternary_lanes import Dot, FloatWeights, Read, named, zeros
from .tile import Activations, accumulate
from .tile import zeros as float_zeros
from .tir import DTYPES, Registers, T, broadcast, lane, let, span, store

# weights(step, vector): reads the bytes of one step of packed weights.
Weights = Callable[[Any, int], Read]


@dataclass(frozen=True)
class Shape:
    """A tile: rows x vectors of packed weights x values of k."""

    rows: int
    vectors: int
    depth: int


class Tiles(Protocol):
    """What differs between integers and floats. Sum i of a row is outputs i * width onwards."""

    # Of a panel and of the sums, as the IR names them.
    @property
    def panel_dtype(self) -> str: ...

    dtype: ClassVar[str]

    @property
    def outputs(self) -> int:
        """Outputs of a vector of packed weights."""

    @property
    def group(self) -> int:
        """Values of k of a plane of packed weights."""

    @property
    def width(self) -> int:
        """Outputs of a vector of sums."""

    @property
    def exact_depth(self) -> int:
        """The most values of k in a tile: whole steps."""

    @property
    def bytes(self) -> int:
        """Of the accumulators of a row and a vector of packed weights."""

    def fill(self, panel: Any, vectors: int, steps: int, weights: Weights) -> None:
        """Unpack ``steps`` steps of ``vectors`` vectors."""

    def packed(self, shape: Shape, activations: Activations, weights: Weights) -> list[Any]:
        """The sums of a tile of packed weights, row by row."""

    def unpacked(self, shape: Shape, activations: Activations, panel: Any) -> list[Any]:
        """The sums of a tile that reads the panel, row by row."""


@dataclass(frozen=True)
class IntegerTiles:
    """int8 activations by codes of weights: sums are too large by ``dot.offset`` times the row's.

    Activations are read in whole steps, so rows must be padded.
    """

    dot: Dot
    dtype: ClassVar[str] = "i32"

    @property
    def panel_dtype(self) -> str:
        return self.dot.stored

    @property
    def outputs(self) -> int:
        return self.dot.outputs

    @property
    def group(self) -> int:
        return self.dot.depth

    @property
    def width(self) -> int:
        return self.dot.outputs

    @property
    def exact_depth(self) -> int:
        return self.dot.block

    @property
    def bytes(self) -> int:
        size = self.dot.registers * self.dot.lanes * int(self.dot.dtype.removeprefix("int")) // 8
        return max(size, 4 * self.outputs)

    def fill(self, panel: Any, vectors: int, steps: int, weights: Weights) -> None:
        with T.serial(steps) as step:
            for v in range(vectors):
                for plane in range(PLANES):
                    at = self._place(step, plane, vectors, v)
                    parts = self.dot.codes(weights(step, v), plane)
                    size = self.dot.bytes // len(parts)
                    for i, part in enumerate(parts):
                        store(panel, part, span(at + i * size, size))

    def packed(self, shape: Shape, activations: Activations, weights: Weights) -> list[Any]:
        def codes(step: Any, plane: int, v: int) -> Sequence[Any]:
            return self.dot.codes(weights(step, v), plane)

        first_step = [weights(0, v) for v in range(shape.vectors)]
        whole = self._whole(shape, activations, first_step)
        return whole or self._add_up(shape, activations, codes)

    def unpacked(self, shape: Shape, activations: Activations, panel: Any) -> list[Any]:
        def codes(step: Any, plane: int, v: int) -> Sequence[Any]:
            start = self._place(step, plane, shape.vectors, v)
            return self.dot.panel(lambda at, n: panel[span(start + at, n)])

        def first(v: int) -> Read:
            start = self._place(0, 0, shape.vectors, v)
            return lambda at, n: panel[span(start + at, n)]

        first_step = [first(v) for v in range(shape.vectors)]
        whole = self._whole(shape, activations, first_step)
        return whole or self._add_up(shape, activations, codes)

    def _whole(
        self, shape: Shape, activations: Activations, weights: Sequence[Read]
    ) -> list[Any] | None:
        """The sums of a tile for which the unit has code of its own."""
        steps = steps_of(shape.depth, self.dot.depth)
        sums = self.dot.tile(shape.rows, steps, weights, activations)
        return None if sums is None else list(sums)

    def _place(self, step: Any, plane: int, vectors: int, v: int) -> Any:
        """Where the codes of a plane of a step lie in a panel of ``vectors`` vectors."""
        return ((step * PLANES + plane) * vectors + v) * self.dot.bytes

    def row_sum(self, depth: int, activations: Activations) -> Any:
        """The sum of the activations of row 0 of the tile: what a weight of 0 adds up to."""

        def zero_weight(step: Any, plane: int, v: int) -> Sequence[Any]:
            return self.dot.codes(lambda at, n: broadcast(T.uint8(ZERO_BYTE), n), plane)

        total = self._add_up(Shape(1, 1, depth), activations, zero_weight)[0]
        return lane(let(total, self.width, "int32"), 0, self.width)

    def _add_up(
        self,
        shape: Shape,
        activations: Activations,
        codes: Callable[[Any, int, int], Sequence[Any]],
    ) -> list[Any]:
        dot, rows, vectors = self.dot, shape.rows, shape.vectors
        total = Registers(rows * vectors * dot.registers, dot.lanes, dot.dtype)
        for i in range(total.count):
            total[i] = zeros(dot)

        def one_plane(step: Any, plane: int) -> None:
            row = [
                named(codes(step, plane, v), dot.bytes // dot.parts, DTYPES[dot.stored])
                for v in range(vectors)
            ]
            for r in range(rows):

                def read(k: Any, n: int, r: int = r) -> Any:
                    return activations(r, k, n)

                x = dot.activations(read, step * dot.step, plane)
                for v in range(vectors):
                    places = self._held(shape, r, v)
                    changed = dot.add([total[i] for i in places], row[v], x, plane)
                    for i, value in changed.items():
                        total[places[i]] = value

        with T.serial(steps_of(shape.depth, dot.depth)) as step:
            for plane in range(PLANES):
                one_plane(step, plane)
        return [
            dot.sums([total[i] for i in self._held(shape, r, v)])
            for r in range(rows)
            for v in range(vectors)
        ]

    def _held(self, shape: Shape, row: int, vector: int) -> range:
        """The accumulators of a row and a vector of outputs."""
        first = (row * shape.vectors + vector) * self.dot.registers
        return range(first, first + self.dot.registers)


@dataclass(frozen=True)
class FloatTiles:
    """float32 activations by weights -1.0, 0.0 and 1.0."""

    lanes: Lanes
    panel_dtype: ClassVar[str] = "f32"
    dtype: ClassVar[str] = "f32"

    @property
    def weights(self) -> FloatWeights:
        return self.lanes.ternary.floats

    @property
    def outputs(self) -> int:
        return self.weights.outputs

    @property
    def group(self) -> int:
        return self.weights.depth

    @property
    def width(self) -> int:
        return self.lanes.float_lanes

    @property
    def exact_depth(self) -> int:
        return 1 << 20

    @property
    def bytes(self) -> int:
        return 4 * self.outputs

    @property
    def _parts(self) -> int:
        """Vectors of floats of a vector of packed weights."""
        return self.outputs // self.width

    def fill(self, panel: Any, vectors: int, steps: int, weights: Weights) -> None:
        values = PLANES * self.group
        with T.serial(steps) as step:
            for v in range(vectors):
                for k in range(values):
                    at = ((step * values + k) * vectors + v) * self.outputs
                    for i, part in enumerate(self.weights.floats(weights(step, v), k)):
                        store(panel, part, span(at + i * self.width, self.width))

    def unpacked(self, shape: Shape, activations: Activations, panel: Any) -> list[Any]:
        lanes, width = self.lanes, self.width
        vectors = shape.vectors * self._parts
        total = float_zeros(lanes, shape.rows, vectors)

        def weights(k: Any, v: int) -> Any:
            return panel[span((k * vectors + v) * width, width)]

        accumulate(lanes, shape.rows, vectors, shape.depth, activations, weights, total)
        return [total[i] for i in range(shape.rows * vectors)]

    def packed(self, shape: Shape, activations: Activations, weights: Weights) -> list[Any]:
        lanes, values = self.lanes, PLANES * self.group
        rows, vectors = shape.rows, shape.vectors * self._parts
        total = float_zeros(lanes, rows, vectors)

        def step(at: Any, count: int) -> None:
            for k in range(count):
                row: list[Any] = []
                for v in range(shape.vectors):
                    row += named(self.weights.floats(weights(at, v), k), self.width, "float32")
                for r in range(rows):
                    x = broadcast(activations(r, at * values + k, 1), self.width)
                    for v in range(vectors):
                        i = r * vectors + v
                        total[i] = lanes.multiply_add(total[i], row[v], x)

        whole, rest = divmod(shape.depth, values)
        if whole:
            with T.serial(whole) as at:
                step(at, values)
        if rest:
            step(whole, rest)
        return [total[i] for i in range(rows * vectors)]
