"""The product of rows of 7-bit codes and ternary weights, by tables of the sums of pairs.

For each two columns of a row there is a table of the nine sums x * a + y * b of their activations
x, y and weights a, b. A sum of products is then a sum of look-ups, of half as many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .lanes import Lanes
from .layout_pairs import GROUP, NUMBERS, groups_of, weights_of
from .record import Spec, Tensor
from .ternary_lanes import Tables
from .ternary_product import TILE_ROWS, TILE_VECTORS, Activations, Write
from .tile import LARGEST_TILE, each_row_block
from .tir import (
    Registers,
    T,
    block_sizes,
    broadcast,
    cast,
    each_vector,
    let,
    load_lanes,
    span,
    store,
)

# Bytes of a table, of which NUMBERS are used; and of those of a group of columns.
TABLE = 16
TABLES = 2 * TABLE
# Outputs of an accumulator.
WIDTH = 8
# Tables of so many bytes stay in a first-level cache of 32 KiB, beside weights and sums of a strip.
TABLE_BYTES = 16 << 10


@dataclass(frozen=True)
class PairProduct:
    """``rows`` rows of ``depth`` codes by packed weights.

    Tables lie in the scratch memory group by group of columns, and there row by row.
    """

    tables: Tables
    rows: int
    depth: int
    # Of the sums, and how many are written at once.
    dtype: ClassVar[str] = "i32"
    width: ClassVar[int] = WIDTH

    @property
    def outputs(self) -> int:
        """Outputs of a strip of packed weights."""
        return self.tables.outputs

    @property
    def padded_depth(self) -> int:
        """Rows are read no further than they are."""
        return self.depth

    @property
    def layout(self) -> str:
        return f"pairs{self.outputs}"

    @property
    def possible(self) -> bool:
        """Whether there are tiles of its sizes."""
        rows, outputs = min(self.rows, self.tables.rows), self.outputs
        return min(rows, outputs) > 0 and 4 * rows * outputs <= LARGEST_TILE

    def for_outputs(self, outputs: int) -> PairProduct:
        """The same with tiles no higher than its rows need, whatever the outputs."""
        (rows,) = block_sizes(self.rows, [self.tables.rows])
        return replace(self, tables=replace(self.tables, rows=rows))

    def knobs(
        self,
        outputs: int,
        tile_rows: Sequence[int] = TILE_ROWS,
        tile_vectors: Sequence[int] = TILE_VECTORS,
    ) -> Mapping[str, tuple[int, ...]]:
        """Values of the parameters of `tables_of`."""
        most = -(-outputs // self.tables.lanes)
        return {
            "table_rows": block_sizes(self.rows, tile_rows),
            "table_vectors": tuple(v for v in tile_vectors if v <= most),
        }

    def scratch(self) -> Tensor:
        """The tables."""
        return Tensor("i8", (groups_of(self.depth) * self.rows * TABLES,))

    def prepare(self, held: Any, activations: Activations) -> None:
        """Make the tables of all rows, in ``held``."""
        with T.serial(self.rows) as row:
            for first, valid in each_vector(self.depth, TABLE):

                def read(k: Any, n: int, row: Any = row) -> Any:
                    return activations(row, k, n)

                codes = let(load_lanes(read, first, valid, TABLE, T.int8(0)), TABLE, "int8")
                for group in range(groups_of(valid)):
                    for pair in range(2):
                        x, y = (
                            broadcast(T.Shuffle([codes], [GROUP * group + 2 * pair + i]), TABLE)
                            for i in range(2)
                        )
                        at = self._place(first // GROUP + group, row) + pair * TABLE
                        store(held, x * _factors(0) + y * _factors(1), span(at, TABLE))

    def _place(self, group: Any, row: Any) -> Any:
        """Where the tables of a group of columns of a row lie."""
        return (group * self.rows + row) * TABLES

    def emit(self, w: Any, held: Any, first: Any, outputs: int, write: Write) -> None:
        """The product with ``outputs`` outputs, from strip ``first`` of the packed ``w``."""
        for strip, there in self._strips(outputs):
            for row, rows in each_row_block(self.rows, self.tables.rows):
                # What lies behind the last output is left out, but for the rest of a look-up.
                vectors = -(-there // self.tables.lanes)
                total = Registers(rows * vectors * self._parts, WIDTH, "int32")
                for i in range(total.count):
                    total[i] = broadcast(T.int32(0), WIDTH)
                for group, depth in self._blocks():
                    part = self._tile(w, held, (first + strip, group), row, (rows, vectors, depth))
                    for i in range(total.count):
                        total[i] = total[i] + cast("int32", part[i], WIDTH)
                for i in range(total.count):
                    r, v = divmod(i, vectors * self._parts)
                    valid = min(there - v * WIDTH, WIDTH)
                    if valid > 0:
                        write(row + r, strip * self.outputs + v * WIDTH, total[i], valid)

    @property
    def _parts(self) -> int:
        """Accumulators of a look-up."""
        return self.tables.lanes // WIDTH

    def _strips(self, outputs: int) -> Iterator[tuple[Any, int]]:
        """Loop over strips: yields (strip, outputs that exist there)."""
        whole, rest = divmod(outputs, self.outputs)
        if whole:
            with T.serial(whole) as strip:
                yield strip, self.outputs
        if rest:
            yield whole, rest

    def _blocks(self) -> Iterator[tuple[Any, int]]:
        """Loop over columns, as many as sums are exact for: yields (first group, columns)."""
        size = self.tables.block
        whole, rest = divmod(self.depth, size)
        if whole:
            with T.serial(whole) as block:
                yield block * groups_of(size), size
        if rest:
            yield whole * groups_of(size), rest

    def _tile(
        self, w: Any, held: Any, at: tuple[Any, Any], row: Any, shape: tuple[int, int, int]
    ) -> Registers:
        """The sums of some rows, look-ups and columns, from group ``at[1]`` of strip ``at[0]``."""
        tables, parts = self.tables, self._parts
        (strip, first), (rows, vectors, depth) = at, shape
        total = Registers(rows * vectors * parts, WIDTH, "int16")
        for i in range(total.count):
            total[i] = broadcast(T.int16(0), WIDTH)
        with T.serial(groups_of(depth)) as group:
            numbers = self._numbers(w, strip, first + group, vectors)
            for r in range(rows):
                place = self._place(first + group, row + r)
                for pair in range(2):
                    table = let(held[span(place + pair * TABLE, TABLE)], TABLE, "int8")
                    for v in range(vectors):
                        found = tables.look_up(table, numbers[pair][v])
                        found = let(found, tables.lanes, "int8")
                        for part in range(parts):
                            i = (r * vectors + v) * parts + part
                            total[i] = total[i] + cast("int16", _eight(found, part, parts), WIDTH)
        return total

    def _numbers(self, w: Any, strip: Any, group: Any, vectors: int) -> tuple[list[Any], list[Any]]:
        """The numbers of a group's first pairs and second pairs, of each look-up."""
        lanes = self.tables.lanes
        low, high = [], []
        for v in range(vectors):
            both = let(w[strip, group, span(v * lanes, lanes)], lanes, "uint8")
            low.append(let(T.bitwise_and(both, broadcast(T.uint8(15), lanes)), lanes, "uint8"))
            high.append(let(T.shift_right(both, broadcast(T.uint8(4), lanes)), lanes, "uint8"))
        return low, high


def _eight(found: Any, part: int, parts: int) -> Any:
    """Eight of the sums of a look-up."""
    return T.Shuffle([found], list(range(8 * part, 8 * part + 8))) if parts > 1 else found


def _factors(which: int) -> Any:
    """The first or second weights of all numbers, as int8 x 16; 0 where there is no number."""
    weights = [weights_of(number)[which] for number in range(NUMBERS)]
    values = [T.int8(weight) for weight in weights + [0] * (TABLE - NUMBERS)]
    return T.Shuffle(values, list(range(TABLE)))


def tables_of(spec: Spec, lanes: Lanes, rows: int) -> Tables | None:
    """What multiplies so many rows by tables, if ``lanes`` have that.

    Parameters of ``spec`` override the sizes of its tiles: rows, and vectors of a look-up.
    """
    tables = lanes.ternary.one_row_tables if rows == 1 else lanes.ternary.tables
    if tables is None:
        return None
    vectors = spec.parameter("table_vectors", tables.outputs // tables.lanes)
    tile_rows = spec.parameter("table_rows", tables.rows)
    return replace(tables, outputs=vectors * tables.lanes, rows=tile_rows)


def rows_at_a_time(depth: int, tables: Tables) -> int:
    """Rows of whose tables a first-level cache holds all: whole tiles, at least one."""
    held = TABLE_BYTES // (groups_of(depth) * TABLES)
    return max(held // tables.rows, 1) * tables.rows
