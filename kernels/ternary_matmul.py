"""``ternary_matmul``: (x[..., K] @ w[N, K].T) * scale in float32, w packed in two bits a weight."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from math import prod
from typing import Any

from .dequantize import scale_vector
from .lanes import Lanes
from .record import Kernel, Spec, Tensor
from .ternary_product import Sums, TernaryProduct, float_product
from .tir import T, function, load_lanes, rows_of, span, store, store_lanes


def supports(spec: Spec, lanes: Lanes) -> bool:
    x, w, scale = spec.operands
    return (
        spec.op == "ternary_matmul"
        and x.dtype == scale.dtype == "f32"
        and x.layout is None
        and w.layout in (None, *layouts(spec, lanes).values())
        and 0 not in (*x.shape, *w.shape)
        and product_of(spec, lanes).possible
    )


def layouts(spec: Spec, lanes: Lanes) -> Mapping[int, str]:
    return {1: product_of(spec, lanes).layout}


def product_of(spec: Spec, lanes: Lanes) -> TernaryProduct:
    *rows, depth = spec.operands[0].shape
    return float_product(spec, lanes, prod(rows), depth)


def scratch(spec: Spec, lanes: Lanes) -> tuple[Tensor, ...]:
    return (product_of(spec, lanes).scratch(),)


def cost(spec: Spec, lanes: Lanes) -> float:
    return prod(spec.operands[0].shape) * spec.operands[1].shape[0] / lanes.float_lanes


def space(spec: Spec, lanes: Lanes) -> tuple[Mapping[str, int], ...]:
    rows = prod(spec.operands[0].shape[:-1])
    tiles = [(6, 2), (5, 2), (4, 2), (4, 3), (3, 4), (8, 1)]
    ways = [{"panel_rows": 0, "tile_rows": r, "tile_vectors": v} for r, v in tiles]
    if rows <= 8:
        ways += [{"panel_rows": rows + 1, "tile_vectors": v} for v in (1, 2, 4, 8)]
    return ({}, *ways)


def knobs(spec: Spec, lanes: Lanes) -> Mapping[str, tuple[int, ...]]:
    return product_of(spec, lanes).knobs(spec.operands[1].shape[0])


def plan(spec: Spec, lanes: Lanes) -> Hashable:
    return product_of(spec, lanes).for_outputs(spec.operands[1].shape[0])


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    x_type, w_type, scale_type = spec.operands
    product = product_of(spec, lanes)
    parameters = {
        "x": rows_of(x_type),
        "w": w_type,
        "scale": scale_type,
        "y": rows_of(spec.results[0]),
        "panel": product.scratch(),
    }
    with function(name, parameters) as f:
        x, w, scale, y, panel = f.buffers
        sums = _sums(product, scale, bool(scale_type.shape), y)
        product.emit(w, panel, 0, w_type.shape[0], lambda row, k, n: x[row, span(k, n)], sums)
    return f.result


def _sums(product: TernaryProduct, scale: Any, per_output: bool, y: Any) -> Sums:
    width = product.tiles.width

    def read(row: Any, output: Any, valid: int) -> Any:
        return load_lanes(lambda i, n: y[row, span(i, n)], output, valid, width, T.float32(0))

    def write(row: Any, output: Any, value: Any, valid: int) -> None:
        store_lanes(lambda v, i, n: store(y, v, row, span(i, n)), value, output, valid, width)

    def finish(row: Any, output: Any, value: Any, valid: int) -> None:
        write(row, output, value * scale_vector(scale, per_output, output, valid, width), valid)

    return Sums(lambda row: T.float32(0), read, write, finish)


KERNEL = Kernel(
    "ternary_matmul",
    ("ternary_matmul",),
    supports,
    build,
    cost,
    scratch,
    layouts,
    space,
    knobs,
    plan,
)
