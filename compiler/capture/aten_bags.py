"""ATen calls on bags: rows of a table, looked up and added up bag by bag."""

from __future__ import annotations

import math

import numpy as np

from ..ir.graph import Node
from .site import Site, accept, lowers

_MOST = 1 << 24  # elements of all rows, for each bag


@lowers("aten._embedding_bag", "aten._embedding_bag_forward_only")
def embedding_bag(
    site: Site,
    table: Node,
    index: Node,
    offsets: Node,
    _: bool = False,
    mode: int = 0,
    sparse: bool = False,
    weights: Node | None = None,
    with_end: bool = False,
    padding: int = -1,
) -> tuple[Node | None, ...]:
    """Sums, means (mode 1) or maxima (mode 2) of the rows of each bag that are no padding."""
    bags, width = site.out[0].shape
    rows = site.make("take", table, index, axis=0)
    if weights is not None:
        rows = site.make("mul", rows, site.reshape(weights, (index.type.size, 1)))
    counts = None
    if padding >= 0:
        counts = site.make("not_equal", index, site.constant(padding, index.type.dtype))
    size = _size_of_all(site, offsets, index.type.size, with_end)
    if size is not None:
        rows = site.reshape(rows, (bags, size, width))
        counts = None if counts is None else site.reshape(counts, (bags, size))
    else:
        many = bags * index.type.size * width
        accept(many <= _MOST, f"{bags} bags of several sizes", "take embedding(...), and sum it")
        inside = _inside(site, offsets, bags, index.type.size, with_end)
        counts = inside if counts is None else site.make("logical_and", inside, counts)
        rows = site.reshape(rows, (1, *rows.type.shape))
    y = _reduced(site, rows, counts, mode)
    return y, *(None,) * (len(site.out) - 1)


def _size_of_all(site: Site, offsets: Node, count: int, with_end: bool) -> int | None:
    """The size that all bags have, where that is known: at least 1."""
    starts = site.value(offsets)
    if starts is None:
        return None
    ends = np.append(starts[: len(starts) - with_end], count)
    sizes = set(np.diff(ends).tolist())
    return sizes.pop() if len(sizes) == 1 and ends[0] == 0 and count else None


def _inside(site: Site, offsets: Node, bags: int, count: int, with_end: bool) -> Node:
    """Which rows [bags, count] lie in which bag: from its offset to the next one."""
    dtype = offsets.type.dtype
    place = site.constant(np.arange(count), dtype, f"{site.name}.places")
    starts = site.reshape(site.slice(offsets, 0, 0, bags), (bags, 1))
    end = site.reshape(site.constant(count, dtype), (1,))
    ends = site.concat([site.slice(offsets, 0, 1, bags), end], 0)
    if with_end:
        ends = site.slice(offsets, 0, 1, bags + 1)
    behind = site.make("greater_equal", place, starts)
    return site.make("logical_and", behind, site.make("less", place, site.reshape(ends, (bags, 1))))


def _reduced(site: Site, rows: Node, counts: Node | None, mode: int) -> Node:
    """The sum, mean or maximum of rows [bags or 1, n, width], of those that count [bags, n]."""
    if counts is None:
        return site.make(("sum", "mean", "max")[mode], rows, axes=(1,))
    number = site.sum(site.cast(counts, "f32"), (1,), keep=True)
    counts = site.reshape(counts, (*counts.type.shape, 1))
    zero = site.constant(0, "f32")
    if mode < 2:
        total = site.sum(site.make("where", counts, rows, zero), (1,))
        least = site.constant(1, "f32")
        return total if mode == 0 else site.make("div", total, site.make("maximum", number, least))
    best = site.make("where", counts, rows, site.constant(-math.inf, "f32"))
    best = site.make("max", best, axes=(1,))
    return site.make("where", site.make("greater", number, zero), best, zero)
