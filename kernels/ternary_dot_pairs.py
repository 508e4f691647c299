"""``ternary_dot`` of 7-bit codes by tables of the sums of pairs, where lanes have look-ups.

Some rows at a time, as many as have their tables in the first-level cache.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from math import prod
from typing import Any

from .lanes import Lanes
from .record import Kernel, Spec, Tensor
from .ternary_lanes import Tables
from .ternary_pairs import WIDTH, PairProduct, rows_at_a_time, tables_of
from .tir import T, block_sizes, function, row_blocks, rows_of, span, store, store_lanes

# Cycles of making the tables of a column of a row.
TABLE_CYCLES = 3


def supports(spec: Spec, lanes: Lanes) -> bool:
    if spec.op != "ternary_dot" or spec.attribute("bits") > 7:
        return False
    if any(value < 1 for _, value in spec.parameters) or _tables(spec, lanes) is None:
        return False
    codes, w = spec.operands
    return (
        codes.dtype == "i8"
        and codes.layout is None
        and w.layout in (None, *layouts(spec, lanes).values())
        and 0 not in (*codes.shape, *w.shape)
        and all(product.possible for product in _products(spec, lanes))
    )


def _rows(spec: Spec) -> int:
    return prod(spec.operands[0].shape[:-1])


def _tables(spec: Spec, lanes: Lanes) -> Tables | None:
    return tables_of(spec, lanes, _rows(spec))


def _chunks(spec: Spec, tables: Tables) -> list[tuple[int, int, int]]:
    """The rows as `row_blocks`, whose tables are made together."""
    depth = spec.operands[1].shape[1]
    return row_blocks(_rows(spec), spec.parameter("chunk_rows", rows_at_a_time(depth, tables)))


def product_of(spec: Spec, lanes: Lanes, rows: int) -> PairProduct:
    """The product of ``rows`` of the rows."""
    tables = _tables(spec, lanes)
    assert tables is not None, f"{lanes.name} has no look-ups"
    return PairProduct(tables, rows, spec.operands[1].shape[1])


def _products(spec: Spec, lanes: Lanes) -> list[PairProduct]:
    """Those of the chunks, of which there are two sizes at most."""
    chunks = _chunks(spec, product_of(spec, lanes, 1).tables)
    return [product_of(spec, lanes, rows) for _, _, rows in chunks]


def layouts(spec: Spec, lanes: Lanes) -> Mapping[int, str]:
    return {1: product_of(spec, lanes, 1).layout}


def scratch(spec: Spec, lanes: Lanes) -> tuple[Tensor, ...]:
    """The tables of the rows of a chunk."""
    chunks = _chunks(spec, product_of(spec, lanes, 1).tables)
    return (product_of(spec, lanes, max(rows for _, _, rows in chunks)).scratch(),)


def cost(spec: Spec, lanes: Lanes) -> float:
    outputs, depth = spec.operands[1].shape
    tables = product_of(spec, lanes, 1).tables
    computed = -(-outputs // tables.lanes) * tables.lanes
    return _rows(spec) * depth * (computed / tables.rate + TABLE_CYCLES)


def space(spec: Spec, lanes: Lanes) -> tuple[Mapping[str, int], ...]:
    return ({}, *({"chunk_rows": rows} for rows in (4, 8, 16, 32)))


def knobs(spec: Spec, lanes: Lanes) -> Mapping[str, tuple[int, ...]]:
    tiles = product_of(spec, lanes, _rows(spec)).knobs(spec.operands[1].shape[0])
    return {"chunk_rows": block_sizes(_rows(spec), (4, 8, 12, 16, 32, 64)), **tiles}


def plan(spec: Spec, lanes: Lanes) -> Hashable:
    return tuple(p.for_outputs(spec.operands[1].shape[0]) for p in _products(spec, lanes))


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    parameters = {
        "codes": rows_of(spec.operands[0]),
        "w": spec.operands[1],
        "y": rows_of(spec.results[0]),
        "tables": scratch(spec, lanes)[0],
    }
    outputs = spec.operands[1].shape[0]
    with function(name, parameters) as f:
        codes, w, y, held = f.buffers
        for first, count, rows in _chunks(spec, product_of(spec, lanes, 1).tables):
            product = product_of(spec, lanes, rows)
            with T.serial(count) as chunk:
                start = first + chunk * rows

                def activations(row: Any, k: Any, n: int, start: Any = start) -> Any:
                    return codes[start + row, span(k, n)]

                def write(
                    row: Any, output: Any, value: Any, valid: int, start: Any = start
                ) -> None:
                    def put(part: Any, at: Any, n: int) -> None:
                        store(y, part, start + row, span(at, n))

                    store_lanes(put, value, output, valid, WIDTH, "int32")

                product.prepare(held, activations)
                product.emit(w, held, 0, outputs, write)
    return f.result


KERNEL = Kernel(
    "ternary_dot_pairs",
    ("ternary_dot",),
    supports,
    build,
    cost,
    scratch,
    layouts,
    space,
    knobs,
    plan,
)
