"""``linear``: activation(x[..., K] @ w[N, K].T + bias), w constant and packed in panels.

One packing serves one row and many: a tile for one row spans several panels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

from .lanes import Lanes
from .pointwise_math import ACTIVATIONS
from .record import Kernel, Spec
from .tile import Columns, accumulate, column_blocks, each_row_block, zeros
from .tir import Registers, T, function, load_lanes, rows_of, span, store, store_lanes

# Rows that pass through all outputs together: their activations stay in the second-level cache.
CHUNK_ROWS = 96


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
    )


def cost(spec: Spec, lanes: Lanes) -> float:
    rows = prod(spec.operands[0].shape[:-1])
    return rows * prod(spec.operands[1].shape) / lanes.float_lanes


def space(spec: Spec, lanes: Lanes) -> tuple[Mapping[str, int], ...]:
    rows, vectors = lanes.tile_rows, lanes.tile_vectors
    tiles = [(rows, vectors), (rows - 1, vectors), (rows * vectors // (vectors + 1), vectors + 1)]
    # A tile wider than high needs more registers for weights than it saves in activations.
    return tuple(
        {"tile_rows": r, "tile_vectors": v}
        for r, v in tiles
        if (r, v) == tiles[0] or r >= max(v, 1)
    )


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
        chunk = CHUNK_ROWS if rows >= 2 * CHUNK_ROWS else rows
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


KERNEL = Kernel("linear", ("linear",), supports, build, cost, layouts=layouts, space=space)
