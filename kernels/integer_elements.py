"""Integer mode, element by element: other scales, tables, sums that saturate, products."""

from __future__ import annotations

from math import prod
from typing import Any

from .elements import broadcast_strides, merge, nest, offset, row_major
from .integer import buffers, clipped, is_plain, requantized, wide
from .lanes import Lanes
from .record import Kernel, Spec
from .tir import Function, T, function, loop, store


def _value(f: Function, lanes: Lanes, spec: Spec, x: Any, other: Any) -> Any:
    """What stands in the result for an element of the first operand and one of the second."""
    if spec.op == "saturating_add":
        return clipped(lanes, wide(x) + wide(other), "i16")
    if spec.op == "integer_mul":
        return wide(x) * wide(other)
    return requantized(f, lanes, spec, wide(x), other, spec.attribute("dtype"))


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    shape = spec.results[0].shape
    steps = [broadcast_strides(operand.shape, shape) for operand in spec.operands]
    sizes, columns = merge(shape, *steps, row_major(shape))
    with function(name, buffers(spec), spec.open) as f, nest(sizes) as indices:
        x, other, y = f.buffers
        places = [offset(indices, column, T.int32(0)) for column in columns]
        store(y, _value(f, lanes, spec, x[places[0]], other[places[1]]), places[2])
    return f.result


def lookup(spec: Spec, lanes: Lanes, name: str) -> Any:
    with function(name, buffers(spec)) as f, loop("i", prod(spec.results[0].shape)) as i:
        x, table, y = f.buffers
        store(y, table[wide(x[i]) + T.int32(128)], i)
    return f.result


def cost(spec: Spec, lanes: Lanes) -> float:
    return 4.0 * prod(spec.results[0].shape)


def supports(spec: Spec, lanes: Lanes) -> bool:
    return is_plain(spec)


OPS = ("requantize", "saturating_add", "integer_mul")
KERNELS = (
    Kernel("integer_elements", OPS, supports, build, cost, numbers=("drop", "shift")),
    Kernel("lookup", ("lookup",), supports, lookup, cost),
)
