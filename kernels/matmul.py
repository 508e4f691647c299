"""``matmul``: a[..., M, K] @ b[..., K, N], neither of them constant; leading axes broadcast.

``b`` is read where it lies, along N. The last vector of a row starts N - lanes from its end and so
overlaps the one before it: both write the same values there.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from .lanes import Lanes
from .record import Kernel, Spec, Tensor
from .tile import Columns, accumulate, column_blocks, each_row_block, fits, zeros
from .tir import T, block_sizes, function, load_lanes, span, store, store_lanes


def supports(spec: Spec, lanes: Lanes) -> bool:
    tensors = (*spec.operands, *spec.results)
    floats = spec.op == "matmul" and all(
        t.dtype == "f32" and t.layout is None and prod(t.shape) > 0 and len(t.shape) >= 2
        for t in tensors
    )
    return floats and fits(lanes, *_tile_sizes(spec, lanes))


def _tile_sizes(spec: Spec, lanes: Lanes) -> tuple[int, int]:
    """Rows and vectors of a tile."""
    rows = spec.results[0].shape[-2]
    vectors = lanes.tile_vectors if rows > 1 else lanes.gemv_vectors
    tile_rows = min(spec.parameter("tile_rows", lanes.tile_rows), rows)
    return tile_rows, spec.parameter("tile_vectors", vectors)


def knobs(spec: Spec, lanes: Lanes) -> Mapping[str, tuple[int, ...]]:
    rows, outputs = spec.results[0].shape[-2:]
    vectors = (1, 2, 3, 4, 6, 8, 12, 16) if rows == 1 else (1, 2, 3, 4, 6)
    most = -(-outputs // lanes.float_lanes)
    return {
        "tile_rows": block_sizes(rows, range(1, 9)),
        "tile_vectors": tuple(v for v in vectors if v <= most),
    }


def plan(spec: Spec, lanes: Lanes) -> Hashable:
    rows, outputs = spec.results[0].shape[-2:]
    tile_rows, vectors = _tile_sizes(spec, lanes)
    return block_sizes(rows, [tile_rows]), min(vectors, -(-outputs // lanes.float_lanes))


def cost(spec: Spec, lanes: Lanes) -> float:
    return prod(spec.results[0].shape) * spec.operands[0].shape[-1] / lanes.float_lanes


@dataclass(frozen=True)
class Matrix:
    """One matrix of a batch: its buffer and its leading indices."""

    buffer: Any
    batch: tuple[Any, ...]

    def at(self, row: Any, column: Any, count: int) -> tuple[Any, ...]:
        return *self.batch, row, span(column, count)

    def read(self, row: Any, column: Any, count: int) -> Any:
        return self.buffer[self.at(row, column, count)]


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    a_type, b_type = spec.operands
    y_type = spec.results[0]
    rows, outputs = y_type.shape[-2:]
    tile_rows, vectors = _tile_sizes(spec, lanes)
    types = {"a": a_type, "b": b_type, "y": y_type}
    with function(name, types) as f, ExitStack() as loops:
        batch = [loops.enter_context(T.serial(size)) for size in y_type.shape[:-2]]
        a, b, y = (
            Matrix(buffer, _leading(kind, batch))
            for buffer, kind in zip(f.buffers, (a_type, b_type, y_type), strict=True)
        )
        for columns in column_blocks(outputs, vectors, lanes):
            with T.serial(columns.count) as block:
                starts = _starts(lanes, columns, block, outputs)
                for row, size in each_row_block(rows, tile_rows):
                    _tile(lanes, row, size, starts, a_type.shape[-1], outputs, (a, b, y))
    return f.result


def _leading(tensor: Tensor, batch: list[Any]) -> tuple[Any, ...]:
    """The leading indices of ``tensor``: axes that it lacks or has once do not move."""
    own = tensor.shape[:-2]
    return tuple(
        i if size > 1 else 0 for size, i in zip(own, batch[len(batch) - len(own) :], strict=True)
    )


def _starts(lanes: Lanes, columns: Columns, block: Any, outputs: int) -> list[Any]:
    """The first output of each vector of a block."""
    width = lanes.float_lanes
    first = columns.first + block * columns.vectors
    starts = [(first + v) * width for v in range(columns.vectors)]
    if columns.valid < width <= outputs:
        starts[-1] = outputs - width
    return starts


def _tile(
    lanes: Lanes,
    row: Any,
    rows: int,
    starts: list[Any],
    depth: int,
    outputs: int,
    matrices: tuple[Matrix, Matrix, Matrix],
) -> None:
    """Rows ``row ...`` by the vectors of outputs that start at ``starts``."""
    a, b, y = matrices
    width, vectors = lanes.float_lanes, len(starts)
    # Less than one vector in all: element by element.
    valid = min(width, outputs)

    def weights(k: Any, v: int) -> Any:
        return load_lanes(partial(b.read, k), starts[v], valid, width, T.float32(0))

    def keep(value: Any, column: Any, count: int, r: int) -> None:
        store(y.buffer, value, *y.at(row + r, column, count))

    total = zeros(lanes, rows, vectors)
    accumulate(lanes, rows, vectors, depth, lambda r, k, n: a.read(row + r, k, n), weights, total)
    for r in range(rows):
        for v in range(vectors):
            store_lanes(partial(keep, r=r), total[r * vectors + v], starts[v], valid, width)


KERNEL = Kernel("matmul", ("matmul",), supports, build, cost, knobs=knobs, plan=plan)
