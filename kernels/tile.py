"""The register tile of a float32 product, and how a matrix is cut into such tiles.

Every float product (linear, attention, matmul, experts) goes through ``accumulate``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .lanes import Lanes
from .record import Spec
from .tir import Registers, T, broadcast, constant, row_blocks

# activations(row, k, n): n consecutive values of row `row` of the tile, from k.
Activations = Callable[[int, Any, int], Any]
# weights(k, vector): a vector of weights of k for outputs `vector` of the tile.
Weights = Callable[[Any, int], Any]

# Bytes of sums of a tile, at most: the registers of no unit hold half as many, and others lie on
# the stack, of which a kernel may take little.
LARGEST_TILE = 1024


@dataclass(frozen=True)
class Columns:
    """``count`` blocks of ``vectors`` vectors of outputs, from vector ``first``.

    ``valid`` outputs of the last vector of a block exist; it is less than a whole vector only where
    ``count`` is 1.
    """

    first: int
    count: int
    vectors: int
    valid: int


def fits(lanes: Lanes, rows: int, vectors: int) -> bool:
    """Whether there is a tile of so many rows and vectors of outputs."""
    return min(rows, vectors) > 0 and rows * vectors * lanes.float_lanes * 4 <= LARGEST_TILE


def tiled(spec: Spec, lanes: Lanes) -> Lanes:
    """``lanes`` with the tile that the parameters of ``spec`` ask for."""
    rows = spec.parameter("tile_rows", lanes.tile_rows)
    return replace(
        lanes, tile_rows=rows, tile_vectors=spec.parameter("tile_vectors", lanes.tile_vectors)
    )


def tiles_fit(spec: Spec, lanes: Lanes, rows: int) -> bool:
    """Whether there is the tile that `tiled` asks for, of ``rows`` rows at most."""
    tile = tiled(spec, lanes)
    return fits(lanes, min(tile.tile_rows, rows), tile.tile_vectors)


def column_blocks(outputs: int, tile_vectors: int, lanes: Lanes) -> list[Columns]:
    """``outputs`` as blocks of ``tile_vectors`` vectors, and what is left as one smaller block."""
    width = lanes.float_lanes
    whole, rest = divmod(outputs, tile_vectors * width)
    blocks = [Columns(0, whole, tile_vectors, width)] if whole else []
    if rest:
        vectors = -(-rest // width)
        valid = rest - (vectors - 1) * width
        blocks.append(Columns(whole * tile_vectors, 1, vectors, valid))
    return blocks


def each_row_block(rows: int, tile_rows: int) -> Iterator[tuple[Any, int]]:
    """Loop over all rows: yields (first row, rows of the tile), once for each size of tile.

    The body is emitted inside the loop that is open at that moment.
    """
    for first, count, size in row_blocks(rows, tile_rows):
        with T.serial(count) as block:
            yield first + block * size, size


def zeros(lanes: Lanes, rows: int, vectors: int) -> Registers:
    """A tile of accumulators, all zero; accumulator r * vectors + v is vector v of row r."""
    total = Registers(rows * vectors, lanes.float_lanes)
    for i in range(rows * vectors):
        total[i] = constant(0.0, lanes.float_lanes)
    return total


def accumulate(
    lanes: Lanes,
    rows: int,
    vectors: int,
    depth: int,
    activations: Activations,
    weights: Weights,
    total: Registers,
    unroll_k: int | None = None,
) -> None:
    """total[r, v] += sum over k < depth of activations(r, k) * weights(k, v).

    A turn of the loop takes ``unroll_k`` values of k, which is a multiple of the lanes' own.

    In order of k, row, vector: with the vector outside, LLVM spills the broadcast activations.
    One chain of additions an output, so results do not depend on the tile's size.
    """
    unroll_k = unroll_k or lanes.unroll_k
    turns, rest = divmod(depth, unroll_k)

    def step(first: Any, count: int) -> None:
        for offset in range(count):
            group, member = divmod(offset, lanes.unroll_k)
            start = group * lanes.unroll_k
            row_of_weights = [weights(first + offset, v) for v in range(vectors)]
            for r in range(rows):

                def read(k: Any, n: int, r: int = r) -> Any:
                    return activations(r, k, n)

                # A whole group may read all its activations at once; the rest must not.
                if start + lanes.unroll_k <= count:
                    x = lanes.activation(read, first + start, member)
                else:
                    x = broadcast(read(first + offset, 1), lanes.float_lanes)
                for v in range(vectors):
                    at = r * vectors + v
                    total[at] = lanes.multiply_add(total[at], row_of_weights[v], x)

    if turns:
        with T.serial(turns) as turn:
            step(turn * unroll_k, unroll_k)
    if rest:
        step(turns * unroll_k, rest)
