"""ATen calls that reduce axes, order elements or pick the largest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..ir.graph import Node
from .aten_elementwise import arithmetic, truth
from .site import Refused, Site, accept, lowers


def axes_of(x: Node, axes: Any) -> tuple[int, ...]:
    """torch's ``dim``: None or nothing is all axes."""
    if axes is None or axes == [] or axes == ():
        return tuple(range(x.type.rank))
    return tuple(axis % max(1, x.type.rank) for axis in ([axes] if isinstance(axes, int) else axes))


@lowers("aten.sum", "aten.mean")
def total(site: Site, x: Node, axes: Any = None, keep: bool = False, **_: Any) -> Node:
    x = site.cast(x, site.out.dtype)
    if not x.type.rank:
        return x
    return site.make(site.operator, x, axes=axes_of(x, axes), keep=keep)


@lowers("aten.amax", "aten.amin")
def extreme(site: Site, x: Node, axes: Any = None, keep: bool = False) -> Node:
    if not x.type.rank:
        return x
    return site.make(site.operator.removeprefix("a"), x, axes=axes_of(x, axes), keep=keep)


@lowers("aten.max.default", "aten.min.default")
def extreme_of_all(site: Site, x: Node) -> Node:
    return site.make(site.operator, x, axes=axes_of(x, None)) if x.type.rank else x


@lowers("aten.max.other", "aten.min.other")
def extreme_of_two(site: Site, a: Node, b: Node) -> Node:
    return arithmetic(site, "maximum" if site.operator == "max" else "minimum", a, b)


@lowers("aten.max.dim", "aten.min.dim")
def extreme_and_index(site: Site, x: Node, axis: int, keep: bool = False) -> tuple[Node, Node]:
    axis %= x.type.rank
    value = site.make(site.operator, x, axes=(axis,), keep=keep)
    return value, _index_of_extreme(site, x, axis, keep, site.operator)


@lowers("aten.aminmax")
def aminmax(site: Site, x: Node, *, dim: int | None = None, keepdim: bool = False) -> Any:
    axes = axes_of(x, dim)
    return tuple(site.make(op, x, axes=axes, keep=keepdim) for op in ("min", "max"))


@lowers("aten.argmax", "aten.argmin")
def argextreme(site: Site, x: Node, axis: int | None = None, keep: bool = False) -> Node:
    if axis is None:
        x = site.reshape(x, (x.type.size,))
    index = _index_of_extreme(site, x, (axis or 0) % x.type.rank, keep, site.operator[3:])
    return site.reshape(index, site.out.shape)


def _index_of_extreme(site: Site, x: Node, axis: int, keep: bool, which: str) -> Node:
    x = site.cast(x, "i32") if x.type.dtype == "bool" else x
    x = site.make("neg", x) if which == "min" else x
    return site.make("argmax", x, axis=axis, keep=keep)


@lowers("aten.any", "aten.all")
def any_or_all(site: Site, x: Node, axes: Any = None, keep: bool = False) -> Node:
    if not x.type.rank:
        return truth(site, x)
    op = "max" if site.operator == "any" else "min"
    return site.make(op, truth(site, x), axes=axes_of(x, axes), keep=keep)


@lowers("aten.prod")
def product(site: Site, x: Node, axis: int | None = None, keep: bool = False, **_: Any) -> Node:
    x = site.cast(x, site.out.dtype)
    x, axis = (site.reshape(x, (x.type.size,)), 0) if axis is None else (x, axis % x.type.rank)
    count = x.type.shape[axis]
    accept(1 <= count <= 64, f"a product of {count} elements", "take exp of the sum of logarithms")
    parts = [site.slice(x, axis, i, i + 1) for i in range(count)]
    y = parts[0]
    for part in parts[1:]:
        y = site.make("mul", y, part)
    return site.reshape(y, site.out.shape)


def variance_of(
    site: Site, x: Node, axes: tuple[int, ...], correction: float, keep: bool
) -> tuple[Node, Node]:
    """Variance and mean over ``axes``; the variance divides by the count less ``correction``."""
    count = int(np.prod([x.type.shape[axis] for axis in axes]))
    mean = site.make("mean", x, axes=axes, keep=True)
    centred = site.make("sub", x, mean)
    squares = site.make("sum", site.make("mul", centred, centred), axes=axes, keep=keep)
    variance = site.make("div", squares, site.constant(max(0, count - correction), x.type.dtype))
    kept = mean if keep else site.reshape(mean, variance.type.shape)
    return variance, kept


@lowers("aten.var", "aten.std", "aten.var_mean", "aten.std_mean")
def variance(
    site: Site,
    x: Node,
    axes: Any = None,
    unbiased: bool = True,
    keep: bool = False,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> Any:
    if isinstance(axes, bool):  # the overload with `unbiased` alone
        axes, unbiased = None, axes
    given = float(unbiased) if correction is None else correction
    if site.target.endswith(".correction") and correction is None:
        given = 1.0
    y, mean = variance_of(site, x, axes_of(x, axes), given, keep or keepdim)
    y = site.make("sqrt", y) if site.operator.startswith("std") else y
    return (y, mean) if site.operator.endswith("_mean") else y


@lowers("aten.logsumexp")
def logsumexp(site: Site, x: Node, axes: Any, keep: bool = False) -> Node:
    return site.reshape(log_of_sum(site, x, axes_of(x, axes)), site.out.shape)


def log_of_sum(site: Site, x: Node, axes: tuple[int, ...]) -> Node:
    """log(sum(exp(x))), the axes kept; infinite where a row is, or nothing but -infinity."""
    infinity, zero = (site.constant(value, x.type.dtype) for value in (math.inf, 0))
    largest = site.make("max", x, axes=axes, keep=True)
    is_infinite = site.make("equal", site.make("abs", largest), infinity)
    largest = site.make("where", is_infinite, zero, largest)
    total = site.sum(site.make("exp", site.make("sub", x, largest)), axes, keep=True)
    return site.make("add", site.make("log", total), largest)


@lowers("aten.linalg_vector_norm", "aten.norm")
def vector_norm(
    site: Site, x: Node, order: float | None = 2, axes: Any = None, keep: bool = False, **_: Any
) -> Node:
    order = 2 if order is None else order
    axes = axes_of(x, axes)
    size = site.make("abs", x)
    if abs(order) == float("inf"):
        return site.make("max" if order > 0 else "min", size, axes=axes, keep=keep)
    if order == 1:
        return site.make("sum", size, axes=axes, keep=keep)
    if order == 2:
        return site.make("sqrt", site.make("sum", site.make("mul", x, x), axes=axes, keep=keep))
    if order == 0:
        there = site.make("not_equal", x, site.constant(0, x.type.dtype))
        return site.make("sum", site.cast(there, x.type.dtype), axes=axes, keep=keep)
    power, root = (site.constant(n, x.type.dtype) for n in (order, 1 / order))
    total = site.make("sum", site.make("pow", size, power), axes=axes, keep=keep)
    return site.make("pow", total, root)


@lowers("aten._cdist_forward")
def distances(site: Site, a: Node, b: Node, order: float, _: int | None = None) -> Node:
    """The norms of the differences of every row of ``a`` and every row of ``b``."""
    left = site.reshape(a, (*a.type.shape[:-1], 1, a.type.shape[-1]))
    right = site.reshape(b, (*b.type.shape[:-2], 1, *b.type.shape[-2:]))
    return vector_norm(site, site.make("sub", left, right), order, -1)


@lowers("aten.topk")
def topk(
    site: Site, x: Node, k: int, axis: int = -1, largest: bool = True, ordered: bool = True
) -> tuple[Node, Node]:
    return in_order(site, x, k, axis, largest)


@lowers("aten.sort.default")
def sort(site: Site, x: Node, axis: int = -1, descending: bool = False) -> tuple[Node, Node]:
    return in_order(site, x, _length(x, axis), axis, descending)


@lowers("aten.sort.stable")
def sort_stable(
    site: Site, x: Node, *, stable: bool = True, dim: int = -1, descending: bool = False
) -> tuple[Node, Node]:
    return sort(site, x, dim, descending)


@lowers("aten.argsort.default")
def argsort(site: Site, x: Node, axis: int = -1, descending: bool = False) -> Node:
    return sort(site, x, axis, descending)[1]


@lowers("aten.argsort.stable")
def argsort_stable(
    site: Site, x: Node, *, stable: bool = True, dim: int = -1, descending: bool = False
) -> Node:
    return sort(site, x, dim, descending)[1]


def _length(x: Node, axis: int) -> int:
    return x.type.shape[axis] if x.type.rank else 1


def in_order(site: Site, x: Node, k: int, axis: int, descending: bool) -> tuple[Node, Node]:
    """The k largest (or smallest) of an axis in order, and where they stood."""
    dtype = x.type.dtype
    axis %= max(1, x.type.rank)
    if not x.type.rank:
        values, index = in_order(site, site.reshape(x, (1,)), k, 0, descending)
        return site.reshape(values, ()), site.reshape(index, ())
    x = site.cast(x, "i32") if dtype in ("bool", "u8") else x
    rows = site.move(x, axis, -1)
    rows = rows if descending else site.make("neg", rows)
    values, index = site.results("top_k", rows, k=k)
    values = values if descending else site.make("neg", values)
    return site.cast(site.move(values, -1, axis), dtype), site.move(index, -1, axis)


@lowers("aten.one_hot")
def one_hot(site: Site, x: Node, classes: int = -1) -> Node:
    if classes < 0:
        raise Refused("one_hot without a number of classes", "give num_classes")
    return site.cast(hits(site, x, classes), "i64")


def hits(site: Site, index: Node, size: int) -> Node:
    """Whether each element of ``index`` is 0, 1 ... size - 1, along a new last axis."""
    numbers = site.constant(np.arange(size), index.type.dtype, f"{site.name}.numbers")
    return site.make("equal", site.reshape(index, (*index.type.shape, 1)), numbers)
