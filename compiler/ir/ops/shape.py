"""Ops that move elements and compute none, and reductions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..types import INTEGERS, Type
from .table import REQUIRED, axis_of, broadcast_shapes, op, want

Array = np.ndarray


def reshape(x: Type, shape: tuple[int, ...]) -> Type:
    result = Type(x.dtype, tuple(shape))
    want(result.size == x.size, f"{x} has {x.size} elements, {result} has {result.size}")
    return result


def transpose(x: Type, order: tuple[int, ...]) -> Type:
    want(sorted(order) == list(range(x.rank)), f"{order} is no order of {x.rank} axes")
    return Type(x.dtype, tuple(x.shape[axis] for axis in order))


def broadcast(x: Type, shape: tuple[int, ...]) -> Type:
    want(broadcast_shapes(x.shape, shape) == tuple(shape), f"{x} does not broadcast to {shape}")
    return Type(x.dtype, tuple(shape))


def sliced(x: Type, axis: int, start: int, stop: int, step: int) -> Type:
    axis = axis_of(axis, x.rank)
    size = x.shape[axis]
    want(0 <= start <= stop <= size, f"slice {start}:{stop} of an axis of size {size}")
    want(step >= 1, f"slice step {step}")
    shape = list(x.shape)
    shape[axis] = len(range(start, stop, step))
    return Type(x.dtype, tuple(shape))


def slice_meaning(x: Array, axis: int, start: int, stop: int, step: int) -> Array:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, stop, step)
    return x[tuple(index)]


def concat(*parts: Type, axis: int) -> Type:
    want(len(parts) > 0, "concat of nothing")
    axis = axis_of(axis, parts[0].rank)

    def others(part: Type) -> tuple[Any, ...]:
        return part.dtype, part.shape[:axis], part.shape[axis + 1 :]

    fits = all(others(part) == others(parts[0]) for part in parts)
    want(fits, f"parts differ off axis {axis}: {', '.join(map(str, parts))}")
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    return Type(parts[0].dtype, tuple(shape))


def take(x: Type, index: Type, axis: int) -> Type:
    axis = axis_of(axis, x.rank)
    want(index.dtype in INTEGERS, f"the index is {index}, not an integer")
    return Type(x.dtype, x.shape[:axis] + index.shape + x.shape[axis + 1 :])


def gather(x: Type, index: Type, axis: int) -> Type:
    axis = axis_of(axis, x.rank)
    want(index.dtype in INTEGERS, f"the index is {index}, not an integer")
    fits = index.rank == x.rank and all(
        n <= m for i, (n, m) in enumerate(zip(index.shape, x.shape, strict=True)) if i != axis
    )
    want(fits, f"index {index} does not fit {x} off axis {axis}")
    return Type(x.dtype, index.shape)


def gather_meaning(x: Array, index: Array, axis: int) -> Array:
    bounds = [slice(n) for n in index.shape]
    bounds[axis] = slice(None)
    return np.take_along_axis(x[tuple(bounds)], index, axis)


def reduced(x: Type, axes: tuple[int, ...], keep: bool) -> Type:
    drop = {axis_of(axis, x.rank) for axis in axes}
    shape = [1 if i in drop else n for i, n in enumerate(x.shape) if keep or i not in drop]
    return Type(x.dtype, tuple(shape))


def _reduction(name: str, function: Any, doc: str) -> Any:
    def meaning(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
        return np.asarray(function(x, axis=tuple(axes), keepdims=keep)).astype(x.dtype)

    return op(name, "x", reduced, meaning, doc, axes=REQUIRED, keep=False)


def arg_type(x: Type, axis: int, keep: bool) -> Type:
    return reduced(x, (axis,), keep).with_dtype("i64")


def argmax(x: Array, axis: int, keep: bool) -> Array:
    return np.argmax(x, axis=axis, keepdims=keep).astype(np.int64)


OPS = [
    op("reshape", "x", reshape, lambda x, shape: x.reshape(shape), "other shape", shape=REQUIRED),
    op(
        "transpose",
        "x",
        transpose,
        lambda x, order: x.transpose(order),
        "axes in another order",
        order=REQUIRED,
    ),
    op(
        "broadcast",
        "x",
        broadcast,
        lambda x, shape: np.broadcast_to(x, shape),
        "repeat along axes of size 1 or missing in front",
        shape=REQUIRED,
    ),
    op(
        "slice",
        "x",
        sliced,
        slice_meaning,
        "elements start, start+step ... before stop of one axis",
        axis=REQUIRED,
        start=0,
        stop=REQUIRED,
        step=1,
    ),
    op(
        "concat",
        "x...",
        concat,
        lambda *parts, axis: np.concatenate(parts, axis),
        "parts joined along an axis",
        axis=REQUIRED,
    ),
    op(
        "take",
        "x index",
        take,
        lambda x, index, axis: np.take(x, index, axis),
        "x[..., index, ...]: the index replaces the axis",
        axis=0,
    ),
    op(
        "gather",
        "x index",
        gather,
        gather_meaning,
        "one element of the axis for each element of index (torch.gather)",
        axis=REQUIRED,
    ),
    _reduction("sum", np.sum, "sum over axes"),
    _reduction("mean", np.mean, "mean over axes"),
    _reduction("max", np.max, "largest over axes"),
    _reduction("min", np.min, "smallest over axes"),
    op("argmax", "x", arg_type, argmax, "first index of the largest", axis=REQUIRED, keep=False),
]
