"""``ternary_dot``: int8 codes[..., K] by ternary w[N, K], exact for \\|code\\| <= 127 at any K.

Where the codes of weights (w + 1) are multiplied, a sum starts from minus the sum of its row:
sum((w + 1) * x) - sum(x) = sum(w * x).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from math import prod
from typing import Any

from .lanes import Lanes
from .record import Kernel, Spec, Tensor
from .ternary_product import Sums, TernaryProduct, integer_product, row_sums, start_of
from .tir import T, function, load_lanes, rows_of, span, store, store_lanes


def supports(spec: Spec, lanes: Lanes) -> bool:
    codes, w = spec.operands
    return (
        spec.op == "ternary_dot"
        and codes.dtype == "i8"
        and codes.layout is None
        and w.layout in (None, *layouts(spec, lanes).values())
        and 0 not in (*codes.shape, *w.shape)
        and product_of(spec, lanes).possible
    )


def layouts(spec: Spec, lanes: Lanes) -> Mapping[int, str]:
    return {1: product_of(spec, lanes).layout}


def product_of(spec: Spec, lanes: Lanes) -> TernaryProduct:
    *rows, depth = spec.operands[0].shape
    return integer_product(spec, lanes, prod(rows), depth)


def scratch(spec: Spec, lanes: Lanes) -> tuple[Tensor, ...]:
    """The panel, sums of rows, and rows padded to whole steps where they are not."""
    product = product_of(spec, lanes)
    padded = product.rows * product.padded_depth if _pads(product) else 1
    return product.scratch(), Tensor("i32", (product.rows,)), Tensor("i8", (padded,))


def _pads(product: TernaryProduct) -> bool:
    return product.padded_depth != product.depth


def cost(spec: Spec, lanes: Lanes) -> float:
    step = product_of(spec, lanes).tiles.outputs * product_of(spec, lanes).tiles.group
    # Without vectors, a product is its load, unpacking, multiplication and loop.
    return 8 * prod(spec.operands[0].shape) * spec.operands[1].shape[0] / step


def space(spec: Spec, lanes: Lanes) -> tuple[Mapping[str, int], ...]:
    rows = prod(spec.operands[0].shape[:-1])
    tiles, vectors = lanes.ternary.tiles, lanes.ternary.vectors
    ways = [{"panel_rows": 0, "tile_rows": r, "tile_vectors": v} for r, v in tiles]
    if rows <= 8:
        ways += [{"panel_rows": rows + 1, "tile_vectors": v} for v in vectors]
    return ({}, *ways)


def knobs(spec: Spec, lanes: Lanes) -> Mapping[str, tuple[int, ...]]:
    return product_of(spec, lanes).knobs(spec.operands[1].shape[0])


def plan(spec: Spec, lanes: Lanes) -> Hashable:
    return product_of(spec, lanes).for_outputs(spec.operands[1].shape[0])


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    product = product_of(spec, lanes)
    panel_type, sums_type, padded_type = scratch(spec, lanes)
    parameters = {
        "codes": rows_of(spec.operands[0]),
        "w": spec.operands[1],
        "y": rows_of(spec.results[0]),
        "panel": panel_type,
        "row_sum": sums_type,
        "padded": padded_type,
    }
    with function(name, parameters) as f:
        codes, w, y, panel, row_sum, padded = f.buffers

        def activations(row: Any, k: Any, n: int) -> Any:
            if _pads(product):
                return padded[span(row * product.padded_depth + k, n)]
            return codes[row, span(k, n)]

        if _pads(product):
            _pad(product, codes, padded)
        row_sums(product, activations, row_sum)
        sums = _sums(product, row_sum, y)
        product.emit(w, panel, 0, spec.operands[1].shape[0], activations, sums)
    return f.result


def _pad(product: TernaryProduct, codes: Any, padded: Any) -> None:
    """Copy every row, with zeros behind it."""
    with T.serial(product.rows) as row:
        with T.serial(product.depth) as k:
            store(padded, codes[row, k], row * product.padded_depth + k)
        with T.serial(product.padded_depth - product.depth) as k:
            store(padded, T.int8(0), row * product.padded_depth + product.depth + k)


def _sums(product: TernaryProduct, row_sum: Any, y: Any) -> Sums:
    width = product.tiles.width

    def read(row: Any, output: Any, valid: int) -> Any:
        return load_lanes(lambda i, n: y[row, span(i, n)], output, valid, width, T.int32(0))

    def write(row: Any, output: Any, value: Any, valid: int) -> None:
        store_lanes(
            lambda v, i, n: store(y, v, row, span(i, n)), value, output, valid, width, "int32"
        )

    return Sums(start_of(product, row_sum), read, write)


KERNEL = Kernel(
    "ternary_dot",
    ("ternary_dot",),
    supports,
    build,
    cost,
    scratch,
    layouts,
    space,
    knobs,
    plan,
    # It serves codes of 8 bits, whatever they have.
    ignored=("bits",),
)
