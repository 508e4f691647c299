"""Ops that only move elements: a copy between two sets of strides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from .elements import (
    Strides,
    broadcast_strides,
    chunks,
    merge,
    nest,
    offset,
    parameters,
    plain,
    read,
    row_major,
    vector_elements,
)
from .lanes import Lanes
from .record import Kernel, Spec
from .tir import T, function, row_blocks, span, store

# Elements of a cache line, about.
LINE = 16


@dataclass(frozen=True)
class Copy:
    """Element i of ``shape`` goes from ``source + i * from_`` to ``target + i * to``."""

    shape: tuple[int, ...]
    from_: Strides
    to: Strides
    source: int = 0
    target: int = 0


def copies(spec: Spec) -> list[Copy]:
    """What the op moves: one copy an operand."""
    shape = spec.results[0].shape
    to = row_major(shape)
    if spec.op == "concat":
        return _joined(spec, to)
    (x,) = spec.operands
    strides = row_major(x.shape)
    if spec.op == "reshape":
        return [Copy((prod(shape),), (1,), (1,))]
    if spec.op == "transpose":
        return [Copy(shape, tuple(strides[axis] for axis in spec.attribute("order")), to)]
    if spec.op == "broadcast":
        return [Copy(shape, broadcast_strides(x.shape, shape), to)]
    assert spec.op == "slice", f"no copy is known for op '{spec.op}'"
    axis = spec.attribute("axis") % len(shape)
    steps = list(strides)
    steps[axis] *= spec.attribute("step")
    return [Copy(shape, tuple(steps), to, source=spec.attribute("start") * strides[axis])]


def _joined(spec: Spec, to: Strides) -> list[Copy]:
    axis = spec.attribute("axis") % len(to)
    done, parts = 0, []
    for x in spec.operands:
        parts.append(Copy(x.shape, row_major(x.shape), to, target=done * to[axis]))
        done += x.shape[axis]
    return parts


def emit_turned(
    shape: Sequence[int], from_: Strides, to: Strides, copy: Copy, x: Any, y: Any
) -> None:
    """Loops that read along one axis and write along another, a block of lines at a time.

    The elements of a cache line that is read are all used while it is near.
    """
    (*outer, run), line = shape, from_.index(1)
    rest = [axis for axis in range(len(outer)) if axis != line]
    with nest([shape[axis] for axis in rest]) as indices:
        source = offset(indices, [from_[axis] for axis in rest], copy.source)
        target = offset(indices, [to[axis] for axis in rest], copy.target)
        for first, blocks, size in row_blocks(shape[line], LINE):
            with nest((blocks, run, size)) as (block, i, j):
                at = first + block * size + j
                value = x[source + i * from_[-1] + at]
                store(y, value, target + i * to[-1] + at * to[line])


def emit(copy: Copy, x: Any, y: Any, lanes: int) -> None:
    """The loops of one copy: vectors along runs that are contiguous in both, else elements."""
    shape, (from_, to) = merge(copy.shape, copy.from_, copy.to)
    if 1 in from_[:-1]:
        emit_turned(shape, from_, to, copy, x, y)
        return
    *outer, run = shape
    with nest(outer) as indices:
        source = offset(indices, from_[:-1], copy.source)
        target = offset(indices, to[:-1], copy.target)

        def vector(start: Any, _vectors: int) -> None:
            value = read(x, source + start * from_[-1], from_[-1], lanes)
            store(y, value, span(target + start, lanes))

        if run >= lanes > 1 and from_[-1] <= 1 and to[-1] == 1:
            chunks(run, lanes, 1, vector)
        else:
            with T.serial(run) as i:
                store(y, x[source + i * from_[-1]], target + i * to[-1])


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    width = vector_elements(spec.results[0].dtype, lanes.float_lanes)
    with function(name, parameters(spec)) as f:
        *operands, y = f.buffers
        for copy, x in zip(copies(spec), operands, strict=True):
            emit(copy, x, y, width)
    return f.result


def cost(spec: Spec, lanes: Lanes) -> float:
    return float(prod(spec.results[0].shape))


KERNEL = Kernel(
    name="move",
    ops=("reshape", "transpose", "broadcast", "slice", "concat"),
    supports=lambda spec, lanes: plain(spec),
    build=build,
    cost=cost,
)
