"""ATen calls that read elements by index tensors."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from ..ir.graph import Node
from .aten_chosen import coordinates
from .aten_elementwise import truth
from .site import Site, accept, lowers

# Ops through which an index stays what it was.
_CARRIERS = frozenset({"cast", "reshape", "transpose", "broadcast", "slice", "take", "gather"})


def is_natural(index: Node, site: Site) -> bool:
    """Whether ``index`` is known to hold no negative number."""
    value = site.held(index)
    if value is not None:
        return bool(value.size == 0 or value.min() >= 0)
    if index.op == "result":
        return index.operands[0].op == "top_k" and index["index"] == 1
    if index.op in _CARRIERS:
        return is_natural(index.operands[0], site)
    if index.op == "concat":
        return all(is_natural(part, site) for part in index.operands)
    return index.op == "argmax" or index.type.dtype == "u8"


def wrapped(site: Site, index: Node, size: int) -> Node:
    """``index`` with negative numbers counted from the end, as torch does."""
    value = site.value(index)
    if value is not None:
        natural = np.where(value < 0, value + size, value)
        return index if np.array_equal(value, natural) else site.constant(natural, index.type.dtype)
    if is_natural(index, site):
        return index
    zero, end = (site.constant(n, index.type.dtype) for n in (0, size))
    is_negative = site.make("less", index, zero)
    return site.make("where", is_negative, site.make("add", index, end), index)


@lowers("aten.embedding")
def embedding(site: Site, table: Node, index: Node, *_: object) -> Node:
    return site.make("take", table, index, axis=0)


@lowers("aten.diagonal_scatter")
def diagonal_scatter(
    site: Site, x: Node, source: Node, offset: int = 0, a: int = 0, b: int = 1
) -> Node:
    rank = x.type.rank
    a, b = a % rank, b % rank
    order = [*(i for i in range(rank) if i not in (a, b)), a, b]
    rows, columns = x.type.shape[a], x.type.shape[b]
    place = np.arange(rows * columns)
    line = np.diagonal(place.reshape(rows, columns), offset)
    place[line] = rows * columns + np.arange(len(line))
    front = site.transpose(x, order)
    flat = site.reshape(front, (*front.type.shape[:-2], rows * columns))
    both = site.concat([flat, site.cast(source, x.type.dtype)], rank - 2)
    y = site.make("take", both, site.constant(place, "i64", f"{site.name}.order"), axis=rank - 2)
    back = [order.index(axis) for axis in range(rank)]
    return site.transpose(site.reshape(y, front.type.shape), back)


@lowers("aten.index_select")
def index_select(site: Site, x: Node, axis: int, index: Node) -> Node:
    x = site.reshape(x, (1,)) if not x.type.rank else x
    axis %= x.type.rank
    index = site.reshape(index, (index.type.size,))
    return site.make("take", x, wrapped(site, index, x.type.shape[axis]), axis=axis)


@lowers("aten.gather")
def gather(site: Site, x: Node, axis: int, index: Node, **_: bool) -> Node:
    axis %= max(1, x.type.rank)
    if not x.type.rank:
        return site.broadcast(x, index.type.shape)
    return site.make("gather", x, wrapped(site, index, x.type.shape[axis]), axis=axis)


@lowers("aten.take_along_dim")
def take_along(site: Site, x: Node, index: Node, axis: int | None = None) -> Node:
    if axis is None:
        x, index, axis = (*(site.reshape(y, (y.type.size,)) for y in (x, index)), 0)
    axis %= x.type.rank
    shapes = [list(y.type.shape) for y in (x, index)]
    for shape in shapes:
        shape[axis] = 1
    common = np.broadcast_shapes(*shapes)
    x, index = (
        site.broadcast(y, (*common[:axis], y.type.shape[axis], *common[axis + 1 :]))
        for y in (x, index)
    )
    return gather(site, x, axis, index)


@lowers("aten.take")
def take(site: Site, x: Node, index: Node) -> Node:
    flat = site.reshape(x, (x.type.size,))
    return site.make("take", flat, wrapped(site, index, x.type.size), axis=0)


def as_numbers(site: Site, indices: Sequence[Node | None]) -> list[Node | None]:
    """``indices`` with masks written as the numbers of their true elements.

    Those of a mask that hangs on data are the numbers of all its elements, marked by it.
    """
    numbers: list[Node | None] = []
    for index in indices:
        if index is None or index.type.dtype not in ("bool", "u8"):
            numbers.append(index)
            continue
        value = site.value(index)
        if value is None:
            numbers.extend(coordinates(site, truth(site, index)))
        else:
            numbers.extend(site.constant(n, "i64") for n in np.nonzero(value))
    return numbers


def flat_index(site: Site, indices: Sequence[Node], sizes: Sequence[int]) -> Node:
    """One index into axes of ``sizes`` laid into one, from an index into each."""
    shape = np.broadcast_shapes(*(index.type.shape for index in indices))
    indices = [wrapped(site, i, size) for i, size in zip(indices, sizes, strict=True)]
    if len(indices) == 1:
        return indices[0]
    marks = [site.marks[index] for index in indices if index in site.marks]
    values = [site.held(index) for index in indices]
    if all(value is not None for value in values) and len(marks) in (0, len(indices)):
        known = [np.broadcast_to(value, shape) for value in values if value is not None]
        flat = np.ravel_multi_index(known, tuple(sizes)) if prod(shape) else np.zeros(shape, int)
        node = site.constant(flat, "i64", f"{site.name}.index")
        if marks:
            site.marks.agree(marks)
            return site.choose(node, 0, marks[0].mask)
        return node
    total = site.cast(indices[0], "i64")
    for index, size in zip(indices[1:], sizes[1:], strict=True):
        total = site.make("mul", total, site.constant(size, "i64"))
        total = site.make("add", total, site.cast(index, "i64"))
    return site.broadcast(total, shape)


@lowers("aten.index", "aten._unsafe_index")
def index(site: Site, x: Node, indices: Sequence[Node | None]) -> Node:
    given = as_numbers(site, indices)
    axes = [axis for axis, i in enumerate(given) if i is not None]
    chosen = [i for i in given if i is not None]
    if not axes:
        return x
    # Index tensors with a gap between them put their axes in front (as in NumPy).
    if axes != list(range(axes[0], axes[-1] + 1)):
        rest = [axis for axis in range(x.type.rank) if axis not in axes]
        x, axes = site.transpose(x, [*axes, *rest]), list(range(len(axes)))
    first, last = axes[0], axes[-1] + 1
    sizes = x.type.shape[first:last]
    flat = flat_index(site, chosen, sizes)
    x = site.reshape(x, (*x.type.shape[:first], prod(sizes), *x.type.shape[last:]))
    return site.make("take", x, flat, axis=first)


@lowers("aten.repeat_interleave.self_Tensor")
def repeat_interleave_by(
    site: Site, x: Node, repeats: Node, axis: int | None = None, **_: object
) -> Node:
    counts = site.value(repeats)
    accept(counts is not None, "repeat_interleave by computed counts", "repeat by constants")
    x = site.reshape(x, (x.type.size,)) if axis is None else x
    axis = 0 if axis is None else axis % x.type.rank
    order = np.repeat(np.arange(x.type.shape[axis]), np.asarray(counts))
    return site.make("take", x, site.constant(order, "i64", f"{site.name}.order"), axis=axis)


@lowers("aten.diagonal")
def diagonal(site: Site, x: Node, offset: int = 0, a: int = 0, b: int = 1) -> Node:
    rank = x.type.rank
    a, b = a % rank, b % rank
    x = site.transpose(x, [*(i for i in range(rank) if i not in (a, b)), a, b])
    count = site.out.shape[-1]
    steps = np.arange(count)
    rows, columns = steps + max(0, -offset), steps + max(0, offset)
    shape = x.type.shape
    flat = site.reshape(x, (*shape[:-2], shape[-2] * shape[-1]))
    order = site.constant(rows * shape[-1] + columns, "i64", f"{site.name}.order")
    return site.make("take", flat, order, axis=rank - 2)
