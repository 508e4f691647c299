"""Elements chosen by an index tensor: ``take`` (whole runs) and ``gather`` (one by one).

An index below zero counts from the end, as in NumPy. One out of range is an error in NumPy; here it
is moved to the nearest end, so that no kernel reads outside its operand.
"""

from __future__ import annotations

from math import prod
from typing import Any

from .elements import chunks, nest, offset, parameters, plain, row_major, vector_elements
from .lanes import Lanes
from .record import Kernel, Spec
from .tir import T, function, let, span, store


def position(value: Any, dtype: str, size: int) -> Any:
    """An index that was read, as an int32 in 0..size-1."""
    kind = "int64" if dtype == "i64" else "int32"
    number = T.int64 if dtype == "i64" else T.int32
    index = let(T.Cast(kind, value), 1, kind)
    index = let(T.Select(index < number(0), index + number(size), index), 1, kind)
    index = let(T.Select(index < number(0), number(0), index), 1, kind)
    index = T.Select(index > number(size - 1), number(size - 1), index)
    return let(T.Cast("int32", index), 1, "int32")


def take(spec: Spec, lanes: Lanes, name: str) -> Any:
    x, index = spec.operands
    axis = spec.attribute("axis") % len(x.shape)
    size, count = x.shape[axis], prod(index.shape)
    run = prod(x.shape[axis + 1 :])
    width = vector_elements(x.dtype, lanes.float_lanes)
    with function(name, parameters(spec)) as f:
        source, chosen, y = f.buffers
        with nest((prod(x.shape[:axis]), count)) as (outer, i):
            at = position(chosen[i], index.dtype, size)
            start = let((outer * size + at) * run, 1, "int32")
            target = (outer * count + i) * run

            def vector(k: Any, _vectors: int) -> None:
                store(y, source[span(start + k, width)], span(target + k, width))

            if run >= width > 1:
                chunks(run, width, 1, vector)
            else:
                with T.serial(run) as k:
                    store(y, source[start + k], target + k)
    return f.result


def gather(spec: Spec, lanes: Lanes, name: str) -> Any:
    x, index = spec.operands
    axis = spec.attribute("axis") % len(x.shape)
    strides = list(row_major(x.shape))
    step, strides[axis] = strides[axis], 0
    with function(name, parameters(spec)) as f:
        source, chosen, y = f.buffers
        with nest(index.shape) as indices:
            here = offset(indices, row_major(index.shape))
            at = position(chosen[here], index.dtype, x.shape[axis])
            store(y, source[offset(indices, strides, at * step)], here)
    return f.result


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    return (take if spec.op == "take" else gather)(spec, lanes, name)


def cost(spec: Spec, lanes: Lanes) -> float:
    return float(prod(spec.results[0].shape))


KERNEL = Kernel(
    name="take",
    ops=("take", "gather"),
    supports=lambda spec, lanes: plain(spec),
    build=build,
    cost=cost,
)
