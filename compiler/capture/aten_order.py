"""ATen calls that order elements, pick by rank, count in order, and run along an axis."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..ir.graph import Node
from ..ir.types import FLOATS, STORAGE
from .aten_elementwise import compare
from .aten_reduce import in_order, log_of_sum
from .site import Site, accept, lowers, promoted


@lowers("aten.kthvalue")
def kth_value(site: Site, x: Node, k: int, axis: int = -1, keep: bool = False) -> Any:
    if not x.type.rank:
        return x, site.constant(0, "i64")
    axis %= x.type.rank
    both = in_order(site, x, k, axis, descending=False)
    parts = [site.slice(part, axis, k - 1, k) for part in both]
    return tuple(site.reshape(y, z.shape) for y, z in zip(parts, site.out, strict=True))


@lowers("aten.median.dim")
def median(site: Site, x: Node, axis: int, keep: bool = False) -> Any:
    """The lower of the two in the middle."""
    return kth_value(site, x, (x.type.shape[axis] + 1) // 2 if x.type.rank else 1, axis)


@lowers("aten.median.default")
def median_of_all(site: Site, x: Node) -> Node:
    values, _ = in_order(site, site.reshape(x, (x.type.size,)), (x.type.size + 1) // 2, 0, False)
    return site.reshape(site.slice(values, 0, values.type.size - 1, values.type.size), ())


@lowers("aten.searchsorted")
def search_sorted(
    site: Site,
    bounds: Node,
    x: Any,
    *,
    right: bool = False,
    side: str | None = None,
    sorter: Node | None = None,
    out_int32: bool = False,
) -> Node:
    """How many bounds are below each element, or not above it."""
    accept(sorter is None, "searchsorted with a sorter", "sort the sequence before the call")
    dtype = promoted(bounds, x)
    x, bounds = site.tensor(x, dtype), site.cast(bounds, dtype)
    if bounds.type.rank > 1:
        bounds = site.reshape(bounds, (*bounds.type.shape[:-1], 1, bounds.type.shape[-1]))
    x = site.reshape(x, (*x.type.shape, 1))
    below = compare(site, "less_equal" if right or side == "right" else "less", bounds, x)
    return site.sum(site.cast(below, site.out.dtype), (below.type.rank - 1,))


@lowers("aten.bucketize")
def bucketize(
    site: Site, x: Any, bounds: Node, *, out_int32: bool = False, right: bool = False
) -> Node:
    return search_sorted(site, bounds, x, right=right)


def running(site: Site, op: str, x: Node, axis: int, neutral: Any) -> Node:
    """``op`` over all elements up to each, in as many steps as the length has binary digits."""
    size, reach = x.type.shape[axis], 1
    while reach < size:
        shape = list(x.type.shape)
        shape[axis] = reach
        first = site.broadcast(site.constant(neutral, x.type.dtype), shape)
        earlier = site.concat([first, site.slice(x, axis, 0, size - reach)], axis)
        x = site.make(op, x, earlier)
        reach *= 2
    return x


@lowers("aten.cumsum")
def running_sum(site: Site, x: Node, axis: int, **_: Any) -> Node:
    x = site.cast(x, site.out.dtype)
    return running(site, "add", x, axis % x.type.rank, 0) if x.type.rank else x


@lowers("aten.cumprod")
def running_product(site: Site, x: Node, axis: int, **_: Any) -> Node:
    x = site.cast(x, site.out.dtype)
    return running(site, "mul", x, axis % x.type.rank, 1) if x.type.rank else x


@lowers("aten.cummax", "aten.cummin")
def running_extreme(site: Site, x: Node, axis: int) -> tuple[Node, Node]:
    """The largest (smallest) so far, and where it stood last."""
    accept(x.type.dtype != "bool", f"{site.operator} of bool", "convert to an integer before it")
    if not x.type.rank:
        return x, site.constant(0, "i64")
    axis %= x.type.rank
    size, largest = x.type.shape[axis], site.operator == "cummax"
    if x.type.dtype in FLOATS:
        neutral: float = -math.inf if largest else math.inf
    else:
        limits = np.iinfo(STORAGE[x.type.dtype])
        neutral = int(limits.min if largest else limits.max)
    values = running(site, "maximum" if largest else "minimum", x, axis, neutral)
    numbers = np.arange(size).reshape((size, *(1,) * (x.type.rank - 1 - axis)))
    here = site.make("equal", x, values)
    none, place = site.constant(0, "i64"), site.constant(numbers, "i64", f"{site.name}.numbers")
    places = site.broadcast(site.make("where", here, place, none), x.type.shape)
    return values, running(site, "maximum", places, axis, 0)


@lowers("aten.logcumsumexp")
def running_log_sum(site: Site, x: Node, axis: int) -> Node:
    if not x.type.rank:
        return x
    axis %= x.type.rank
    rows = site.move(x, axis, -1)
    size = rows.type.shape[-1]
    ahead = site.constant(np.triu(np.ones((size, size), bool), 1), "bool", f"{site.name}.ahead")
    spread = site.reshape(rows, (*rows.type.shape[:-1], 1, size))
    spread = site.make("where", ahead, site.constant(-math.inf, x.type.dtype), spread)
    y = site.reshape(log_of_sum(site, spread, (spread.type.rank - 1,)), rows.type.shape)
    return site.move(y, -1, axis)
