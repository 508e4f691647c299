"""``shuffle``: channel i is x[..., order[i]], or 0 where order[i] is -1."""

from __future__ import annotations

from math import prod
from typing import Any

from .elements import plain
from .lanes import Lanes
from .record import Kernel, Spec
from .take import position
from .tile import each_row_block
from .tir import DTYPES, T, function, let, rows_of, store

# Rows that share one look at the order.
TILE_ROWS = 8


def supports(spec: Spec, lanes: Lanes) -> bool:
    x, order = spec.operands
    return spec.op == "shuffle" and plain(spec) and x.dtype != "bool" and order.dtype == "i32"


def cost(spec: Spec, lanes: Lanes) -> float:
    return 2.0 * prod(spec.results[0].shape)


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    x_type, order_type = spec.operands
    result = rows_of(spec.results[0])
    rows, channels = result.shape
    width = x_type.shape[-1]
    with function(name, {"x": rows_of(x_type), "order": order_type, "y": result}) as f:
        x, order, y = f.buffers
        zero = getattr(T, DTYPES[x_type.dtype])(0)
        for row, size in each_row_block(rows, TILE_ROWS):
            with T.serial(channels) as i:
                chosen = let(order[i], 1, "int32")
                # Read from a place that exists, also where the result is 0.
                source = position(T.Select(chosen < 0, T.int32(0), chosen), "i32", width)
                for r in range(size):
                    store(y, T.Select(chosen < 0, zero, x[row + r, source]), row + r, i)
    return f.result


KERNEL = Kernel("shuffle", ("shuffle",), supports, build, cost)
