"""``linear``: activation(x[..., K] @ w[N, K].T + bias), w constant and packed in panels.

One packing serves one row and many: a tile for one row spans several panels.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial
from math import prod
from typing import Any

from .lanes import Lanes
from .pointwise_math import ACTIVATIONS
from .record import Kernel, Spec
from .tile import Columns, accumulate, column_blocks, each_row_block, fits, zeros
from .tir import (
    Registers,
    T,
    block_sizes,
    function,
    load_lanes,
    rows_of,
    span,
    store,
    store_lanes,
)

# Rows that pass through all outputs together: their activations stay in the second-level cache.
CHUNK_ROWS = 96
# So many rows, or fewer, take more vectors than a panel's.
FEW_ROWS = 4


def _panel_vectors(spec: Spec, lanes: Lanes) -> int:
    return spec.parameter("tile_vectors", lanes.tile_vectors)


def layouts(spec: Spec, lanes: Lanes) -> Mapping[int, str]:
    return {1: f"panel{_panel_vectors(spec, lanes) * lanes.float_lanes}"}


def supports(spec: Spec, lanes: Lanes) -> bool:
    tensors = (*spec.operands, *spec.results)
    return (
        spec.op == "linear"
        and all(t.dtype == "f32" and prod(t.shape) > 0 for t in tensors)
        and spec.operands[0].layout is None
        and spec.operands[1].layout in (None, layouts(spec, lanes)[1])
        and dict(spec.attributes).get("activation", "none") in ACTIVATIONS
        and _possible(spec, lanes)
    )


def _possible(spec: Spec, lanes: Lanes) -> bool:
    """Whether the parameters are sizes that there are."""
    positive = all(value > 0 for _, value in spec.parameters)
    whole = _unroll_k(spec, lanes) % lanes.unroll_k == 0
    return positive and whole and fits(lanes, *_tile_sizes(spec, lanes, _rows(spec)))


def _rows(spec: Spec) -> int:
    return prod(spec.operands[0].shape[:-1])


def cost(spec: Spec, lanes: Lanes) -> float:
    return _rows(spec) * prod(spec.operands[1].shape) / lanes.float_lanes


def space(spec: Spec, lanes: Lanes) -> tuple[Mapping[str, int], ...]:
    rows, vectors = lanes.tile_rows, lanes.tile_vectors
    tiles = [(rows, vectors), (rows - 1, vectors), (rows * vectors // (vectors + 1), vectors + 1)]
    # A tile wider than high needs more registers for weights than it saves in activations.
    return tuple(
        {"tile_rows": r, "tile_vectors": v}
        for r, v in tiles
        if (r, v) == tiles[0] or r >= max(v, 1)
    )


def knobs(spec: Spec, lanes: Lanes) -> Mapping[str, tuple[int, ...]]:
    rows, depth, own = _rows(spec), spec.operands[1].shape[1], lanes.unroll_k
    found = {
        "tile_rows": block_sizes(rows, range(1, 9)),
        "tile_vectors": (1, 2, 3, 4),
        "chunk_rows": (*(size for size in (32, CHUNK_ROWS) if size < rows), rows),
        "unroll_k": (own, *(own * n for n in (2, 4) if own * n <= depth)),
    }
    return found | ({"gemv_vectors": (2, 4, 8, 16)} if rows <= FEW_ROWS else {})


def plan(spec: Spec, lanes: Lanes) -> Hashable:
    rows, panel, unroll = _rows(spec), _panel_vectors(spec, lanes), _unroll_k(spec, lanes)
    (tile_rows, vectors), chunk = _tile_sizes(spec, lanes, rows), _chunk(spec, rows)
    blocks = [block_sizes(size, [tile_rows]) for size in (chunk, rows % chunk) if size]
    return chunk, tuple(blocks), panel, vectors, unroll


def _chunk(spec: Spec, rows: int) -> int:
    """Rows of a chunk; the last one may have fewer."""
    return min(spec.parameter("chunk_rows", CHUNK_ROWS if rows >= 2 * CHUNK_ROWS else rows), rows)


def _unroll_k(spec: Spec, lanes: Lanes) -> int:
    return spec.parameter("unroll_k", lanes.unroll_k)


def _tile_sizes(spec: Spec, lanes: Lanes, rows: int) -> tuple[int, int]:
    """Rows and vectors of a tile. One or two rows take more vectors, a multiple of a panel's."""
    tile_rows = spec.parameter("tile_rows", lanes.tile_rows)
    panel = _panel_vectors(spec, lanes)
    wanted = spec.parameter("gemv_vectors", lanes.gemv_vectors) // min(rows, tile_rows)
    return min(rows, tile_rows), max(wanted // panel, 1) * panel


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    x_type, w_type, *rest = spec.operands
    if w_type.layout != layouts(spec, lanes)[1]:
        raise ValueError(f"linear wants its weights as {layouts(spec, lanes)[1]}, got {w_type}")
    names = ("x", "w", "bias") if rest else ("x", "w")
    parameters = dict(zip(names, (rows_of(x_type), w_type, *rest), strict=True))
    result = rows_of(spec.results[0])
    rows, outputs = result.shape
    with function(name, {**parameters, "y": result}) as f:
        x, w, *bias, y = f.buffers
        chunk = _chunk(spec, rows)
        for first, count in ((0, rows // chunk), (rows // chunk * chunk, 1)):
            chunk_rows = chunk if first == 0 else rows % chunk
            if not chunk_rows:
                continue
            with T.serial(count) as c:
                start = first + c * chunk
                tile_rows, tile_vectors = _tile_sizes(spec, lanes, rows)
                for columns in column_blocks(outputs, tile_vectors, lanes):
                    with T.serial(columns.count) as block:
                        vector = columns.first + block * columns.vectors
                        for row, size in each_row_block(chunk_rows, tile_rows):
                            _tile(spec, lanes, columns, vector, start + row, size, x, w, bias, y)
    return f.result


def _tile(
    spec: Spec,
    lanes: Lanes,
    columns: Columns,
    vector: Any,
    row: Any,
    rows: int,
    x: Any,
    w: Any,
    bias: list[Any],
    y: Any,
) -> None:
    """Rows ``row ...`` by outputs from vector ``vector``: product, bias, activation, store."""
    width, vectors, panel = lanes.float_lanes, columns.vectors, _panel_vectors(spec, lanes)
    activate = ACTIVATIONS[dict(spec.attributes).get("activation", "none")]

    def valid(v: int) -> int:
        return columns.valid if v == vectors - 1 else width

    def keep(value: Any, at: Any, n: int, r: int) -> None:
        store(y, value, row + r, span(at, n))

    total = _start(lanes, columns, vector, rows, bias)
    accumulate(
        lanes,
        rows,
        vectors,
        spec.operands[0].shape[-1],
        lambda r, k, n: x[row + r, span(k, n)],
        # The tile starts at a panel's first vector.
        lambda k, v: w[vector // panel + v // panel, k, span(v % panel * width, width)],
        total,
        _unroll_k(spec, lanes),
    )
    for r in range(rows):
        for v in range(vectors):
            store_lanes(
                partial(keep, r=r),
                activate(lanes, total[r * vectors + v]),
                (vector + v) * width,
                valid(v),
                width,
            )


def _start(lanes: Lanes, columns: Columns, vector: Any, rows: int, bias: list[Any]) -> Registers:
    """The accumulators, holding the bias."""
    total = zeros(lanes, rows, columns.vectors)
    if bias:
        width = lanes.float_lanes
        for v in range(columns.vectors):
            valid = columns.valid if v == columns.vectors - 1 else width
            at = (vector + v) * width
            value = load_lanes(lambda i, n: bias[0][span(i, n)], at, valid, width, T.float32(0))
            for r in range(rows):
                total[r * columns.vectors + v] = value
    return total


KERNEL = Kernel(
    "linear",
    ("linear",),
    supports,
    build,
    cost,
    layouts=layouts,
    space=space,
    knobs=knobs,
    plan=plan,
)
