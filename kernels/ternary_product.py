"""The product of rows of activations and packed ternary weights: loops over register tiles.

Few rows read packed weights straight into registers. For many, a column of tiles is unpacked into a
panel, one block of k at a time, and all rows read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .lanes import Lanes
from .layout_ternary import PLANES, steps_of
from .record import Spec, Tensor
from .ternary_lanes import Read
from .ternary_tile import FloatTiles, IntegerTiles, Shape, Tiles, Weights
from .tile import LARGEST_TILE, each_row_block
from .tir import DTYPES, Registers, T, block_sizes, broadcast, span, store

# activations(row, k, n): n consecutive values of a row, from k.
Activations = Callable[[Any, Any, int], Any]
# write(row, output, value, valid): a vector of sums, of which ``valid`` outputs exist.
Write = Callable[[Any, Any, Any, int], None]

# The most values of k in a panel: 16 outputs of floats then fill 16 KiB.
PANEL_DEPTH = 256
# Fewer rows of floats than this read packed weights directly, a few of them at a time.
FLOAT_PANEL_ROWS = 12
FLOAT_DIRECT_ROWS = 4
# Rows and vectors of a tile that a tuner tries; the latter make at most so many vectors of sums.
TILE_ROWS = (1, 2, 3, 4, 5, 6, 8)
TILE_VECTORS = (1, 2, 3, 4, 6, 8)
MOST_VECTORS = 8


@dataclass(frozen=True)
class Sums:
    """Where the sums go; outputs count from the product's first."""

    # start(row): what a sum starts from, a scalar.
    start: Callable[[Any], Any]
    # read(row, output, valid): sums that were written.
    read: Callable[[Any, Any, int], Any]
    write: Write
    # Takes sums that are complete, where more is to be done with them than to write them.
    finish: Write | None = None


@dataclass(frozen=True)
class Column:
    """Vectors of packed weights, of which ``outputs`` outputs exist."""

    first: Any
    vectors: int
    outputs: int


@dataclass(frozen=True)
class TernaryProduct:
    """``rows`` rows of ``depth`` activations by packed weights, and the sizes of the tiles."""

    tiles: Tiles
    rows: int
    depth: int
    tile_rows: int
    # In vectors of packed weights.
    tile_vectors: int
    through_panel: bool

    @property
    def outputs(self) -> int:
        """Outputs of a vector of packed weights."""
        return self.tiles.outputs

    @property
    def width(self) -> int:
        """Outputs of a vector of sums."""
        return self.tiles.width

    @property
    def dtype(self) -> str:
        """Of the sums."""
        return self.tiles.dtype

    @property
    def layout(self) -> str:
        """How its packed weights lie."""
        return f"ternary{self.tiles.outputs}x{self.tiles.group}"

    @property
    def step(self) -> int:
        """Values of k of a step of packed weights."""
        return PLANES * self.tiles.group

    @property
    def block(self) -> int:
        """The most values of k of a tile: whole steps."""
        wanted = PANEL_DEPTH if self.through_panel else self.depth
        steps = min(self.depth, wanted, self.tiles.exact_depth)
        return steps_of(steps, self.tiles.group) * self.step

    @property
    def padded_depth(self) -> int:
        """The values of k of all steps."""
        return steps_of(self.depth, self.tiles.group) * self.step

    @property
    def possible(self) -> bool:
        """Whether there are tiles of its sizes."""
        rows, vectors = min(self.rows, self.tile_rows), self.tile_vectors
        return min(rows, vectors) > 0 and rows * vectors * self.tiles.bytes <= LARGEST_TILE

    def for_outputs(self, outputs: int) -> TernaryProduct:
        """The same with tiles no larger than so many outputs and its rows need."""
        (tile_rows,) = block_sizes(self.rows, [self.tile_rows])
        tile_vectors = min(self.tile_vectors, -(-outputs // self.outputs))
        return replace(self, tile_rows=tile_rows, tile_vectors=tile_vectors)

    def knobs(
        self,
        outputs: int,
        tile_rows: Sequence[int] = TILE_ROWS,
        tile_vectors: Sequence[int] = TILE_VECTORS,
    ) -> Mapping[str, tuple[int, ...]]:
        """Values of the parameters that it is made with: through a panel or not, and of tiles."""
        most = min(MOST_VECTORS * self.width // self.outputs, -(-outputs // self.outputs))
        return {
            "panel_rows": (0, self.rows + 1),
            "tile_rows": block_sizes(self.rows, tile_rows),
            "tile_vectors": tuple(v for v in tile_vectors if v <= max(most, 1)),
        }

    def scratch(self) -> Tensor:
        """The panel; one element where none is used."""
        size = self.block * self.tile_vectors * self.tiles.outputs
        return Tensor(self.tiles.panel_dtype, (size if self.through_panel else 1,))

    def emit(
        self, w: Any, panel: Any, first: Any, outputs: int, activations: Activations, sums: Sums
    ) -> None:
        """The product with ``outputs`` outputs, from vector ``first`` of the packed ``w``."""
        for column in self._columns(outputs):
            vector = first + column.first

            def weights(step: Any, v: int, vector: Any = vector) -> Read:
                return lambda at, n: w[vector + v, step, span(at, n)]

            if self.through_panel:
                self._panel_column(column, weights, panel, activations, sums)
            else:
                self._direct_column(column, weights, activations, sums)

    def _columns(self, outputs: int) -> Iterator[Column]:
        size = self.tile_vectors * self.tiles.outputs
        whole, rest = divmod(outputs, size)
        if whole:
            with T.serial(whole) as i:
                yield Column(i * self.tile_vectors, self.tile_vectors, size)
        if rest:
            yield Column(whole * self.tile_vectors, -(-rest // self.tiles.outputs), rest)

    def blocks(self) -> Iterator[tuple[Any, int]]:
        """Loop over k: yields (first step, values of k)."""
        whole, rest = divmod(self.depth, self.block)
        if whole:
            with T.serial(whole) as i:
                yield i * (self.block // self.step), self.block
        if rest:
            yield whole * (self.block // self.step), rest

    def _direct_column(
        self, column: Column, weights: Weights, activations: Activations, sums: Sums
    ) -> None:
        for row, rows in each_row_block(self.rows, self.tile_rows):
            count = rows * self._vectors_of_sums(column)
            total = Registers(count, self.tiles.width, DTYPES[self.tiles.dtype])
            for i, (r, _) in enumerate(self._each_sum(column, rows)):
                total[i] = broadcast(sums.start(row + r), self.tiles.width)
            for step, depth in self.blocks():
                part = self.tiles.packed(
                    Shape(rows, column.vectors, depth),
                    _moved(activations, row, step * self.step),
                    _moved_weights(weights, step),
                )
                for i in range(count):
                    total[i] = total[i] + part[i]
            for i, (r, v) in enumerate(self._each_sum(column, rows)):
                self._write(column, sums.finish or sums.write, row + r, v, total[i])

    def _panel_column(
        self, column: Column, weights: Weights, panel: Any, activations: Activations, sums: Sums
    ) -> None:
        once = self.depth <= self.block
        if not once:
            with T.serial(self.rows) as row:
                for _, v in self._each_sum(column, 1):
                    start = broadcast(sums.start(row), self.tiles.width)
                    self._write(column, sums.write, row, v, start)
        for step, depth in self.blocks():
            steps = steps_of(depth, self.tiles.group)
            self.tiles.fill(panel, column.vectors, steps, _moved_weights(weights, step))
            for row, rows in each_row_block(self.rows, self.tile_rows):
                shape = Shape(rows, column.vectors, depth)
                part = self.tiles.unpacked(shape, _moved(activations, row, step * self.step), panel)
                for (r, v), value in zip(self._each_sum(column, rows), part, strict=True):
                    if once:
                        start = broadcast(sums.start(row + r), self.tiles.width)
                        write = sums.finish or sums.write
                        self._write(column, write, row + r, v, start + value)
                    else:
                        before = self._read(column, sums, row + r, v)
                        self._write(column, sums.write, row + r, v, before + value)
        if not once and sums.finish:
            with T.serial(self.rows) as row:
                for _, v in self._each_sum(column, 1):
                    self._write(column, sums.finish, row, v, self._read(column, sums, row, v))

    def _vectors_of_sums(self, column: Column) -> int:
        return column.vectors * self.tiles.outputs // self.tiles.width

    def _each_sum(self, column: Column, rows: int) -> list[tuple[int, int]]:
        """(row, vector of sums) of a tile, in the order of its sums."""
        return [(r, v) for r in range(rows) for v in range(self._vectors_of_sums(column))]

    def _place(self, column: Column, v: int) -> tuple[Any, int]:
        """The output at which vector of sums ``v`` starts, and how many of its outputs exist."""
        width = self.tiles.width
        valid = min(column.outputs - v * width, width)
        return column.first * self.tiles.outputs + v * width, valid

    def _read(self, column: Column, sums: Sums, row: Any, v: int) -> Any:
        output, valid = self._place(column, v)
        return sums.read(row, output, valid)

    def _write(self, column: Column, write: Write, row: Any, v: int, value: Any) -> None:
        output, valid = self._place(column, v)
        if valid > 0:
            write(row, output, value, valid)


def _moved(activations: Activations, row: Any, k: Any) -> Activations:
    return lambda r, offset, n: activations(row + r, k + offset, n)


def _moved_weights(weights: Weights, step: Any) -> Weights:
    return lambda offset, v: weights(step + offset, v)


def integer_product(spec: Spec, lanes: Lanes, rows: int, depth: int) -> TernaryProduct:
    """The product of int8 activations; parameters of ``spec`` override the record's sizes."""
    ternary = lanes.ternary
    through_panel = rows >= spec.parameter("panel_rows", ternary.panel_rows)
    few = ternary.one_row if rows == 1 else ternary.few_rows
    tile_rows, tile_vectors = ternary.many_rows if through_panel else few
    tiles = IntegerTiles(ternary.unpacked if through_panel else ternary.packed)
    return _sized(tiles, spec, rows, depth, through_panel, min(rows, tile_rows), tile_vectors)


def float_product(spec: Spec, lanes: Lanes, rows: int, depth: int) -> TernaryProduct:
    """The product of float32 activations; parameters of ``spec`` override the record's sizes."""
    tiles, parts = FloatTiles(lanes), lanes.ternary.floats.outputs // lanes.float_lanes
    through_panel = rows >= spec.parameter("panel_rows", FLOAT_PANEL_ROWS)
    few_vectors = lanes.tile_vectors if rows > 2 else lanes.ternary.one_row[1] * parts
    tile_rows = lanes.tile_rows if through_panel else min(rows, FLOAT_DIRECT_ROWS)
    tile_vectors = lanes.tile_vectors if through_panel else few_vectors
    vectors = max(tile_vectors // parts, 1)
    return _sized(tiles, spec, rows, depth, through_panel, tile_rows, vectors)


def _sized(
    tiles: Tiles,
    spec: Spec,
    rows: int,
    depth: int,
    through_panel: bool,
    tile_rows: int,
    tile_vectors: int,
) -> TernaryProduct:
    tile_rows = spec.parameter("tile_rows", tile_rows)
    tile_vectors = spec.parameter("tile_vectors", tile_vectors)
    return TernaryProduct(tiles, rows, depth, tile_rows, tile_vectors, through_panel)


def row_sums(product: TernaryProduct, activations: Activations, row_sum: Any) -> None:
    """Fill ``row_sum`` i32[rows] with the sums of the rows, if the product's codes need them."""
    assert isinstance(product.tiles, IntegerTiles), "only integers are multiplied by codes"
    if not product.tiles.dot.offset:
        return
    with T.serial(product.rows) as row:
        total = Registers(1, 1, "int32")
        total[0] = T.int32(0)
        for step, depth in product.blocks():
            part = product.tiles.row_sum(depth, _moved(activations, row, step * product.step))
            total[0] = total[0] + part
        store(row_sum, total[0], row)


def start_of(product: TernaryProduct, row_sum: Any) -> Callable[[Any], Any]:
    """What a row's integer sums start from: minus what its codes add too much."""
    assert isinstance(product.tiles, IntegerTiles), "only integers are multiplied by codes"
    if product.tiles.dot.offset:
        return lambda row: T.int32(0) - row_sum[row]
    return lambda row: T.int32(0)
