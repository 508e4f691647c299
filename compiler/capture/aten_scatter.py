"""ATen calls that write elements by index tensors: as masks and products, nothing in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from ..ir.build import make
from ..ir.graph import Node
from ..ir.types import FLOATS
from .aten_elementwise import arithmetic, compare, truth
from .aten_index import as_numbers, flat_index
from .aten_order import running
from .aten_reduce import hits, in_order
from .aten_shape import written
from .chosen import Chosen, same, unshaped
from .refusals import MASK_ADVICE
from .site import Site, accept, lowers
from .sorted_rows import before_sorting, inverse

_MOST_STEPS = 64
_MOST_HITS = 1 << 24


@lowers("aten.scatter", "aten.scatter_add")
def scatter(
    site: Site, x: Node, axis: int, index: Node, source: Any, *, reduce: str | None = None
) -> Node:
    reduce = "add" if site.operator == "scatter_add" else reduce
    known = reduce in (None, "add", *_STEP)
    accept(known, f"scatter with reduce='{reduce}'", "use scatter_add")
    axis %= max(1, x.type.rank)
    if not isinstance(source, Node):
        source = site.broadcast(site.constant(source, x.type.dtype), index.type.shape)
    for at in range(source.type.rank):
        source = site.slice(source, at, 0, index.type.shape[at])
    rows = _index_of_rows(site, index, axis)
    if rows is not None and reduce not in _STEP:
        return _write(site, x, axis, rows, source, add=reduce == "add")
    for at, (covered, all_of) in enumerate(zip(index.type.shape, x.type.shape, strict=True)):
        if at != axis and covered < all_of:
            part = scatter(site, site.slice(x, at, 0, covered), axis, index, source, reduce=reduce)
            return site.concat([part, site.slice(x, at, covered, all_of)], at)
    whole = index.type.shape == x.type.shape
    if reduce is None and whole and _is_permutation(index, axis):
        back = in_order(site, index, index.type.shape[axis], axis, descending=False)[1]
        return site.make("gather", source, back, axis=axis)
    if index.type.shape[axis] <= _MOST_STEPS:
        return _write_step_by_step(site, x, axis, index, source, reduce)
    return _write_at_once(site, x, axis, index, source, reduce)


def _is_permutation(index: Node, axis: int) -> bool:
    """Whether ``index`` is known to hold every number of the axis once: the order of a sort."""
    if index.op != "result" or axis != index.type.rank - 1:
        return False
    return index.operands[0].op == "top_k" and index.operands[0]["k"] == index.type.shape[-1]


_NEUTRAL = {"sum": 0, "mean": 0, "amax": -math.inf, "amin": math.inf}


@lowers("aten.scatter_reduce", "aten.index_reduce")
def scatter_reduce(
    site: Site,
    x: Node,
    axis: int,
    index: Node,
    source: Node,
    reduce: str,
    *,
    include_self: bool = True,
) -> Node:
    what = f"{site.operator} of {x.type.dtype} with '{reduce}'"
    advice = "use 'sum', 'mean', 'amax' or 'amin' of floats"
    accept(reduce in _NEUTRAL and x.type.dtype in FLOATS, what, advice)
    if site.operator == "index_reduce":
        shape = [1] * source.type.rank
        shape[axis] = index.type.size
        index = site.broadcast(site.reshape(index, shape), source.type.shape)
    if reduce in ("amax", "amin") and include_self:
        return _extreme(site, x, axis, index, source, reduce)
    zeros = site.broadcast(site.constant(0, x.type.dtype), x.type.shape)
    count = scatter(site, zeros, axis, index, 1, reduce="add")
    if not include_self:
        written = compare(site, "greater", count, 0)
        x = site.make("where", written, site.constant(_NEUTRAL[reduce], x.type.dtype), x)
    if reduce in ("amax", "amin"):
        return _extreme(site, x, axis, index, source, reduce)
    total = scatter(site, x, axis, index, source, reduce="add")
    if reduce == "sum":
        return total
    count = arithmetic(site, "add", count, 1) if include_self else count
    return site.make("div", total, arithmetic(site, "maximum", count, 1))


def _extreme(site: Site, x: Node, axis: int, index: Node, source: Node, reduce: str) -> Node:
    """The largest (smallest) of an element and of all that are written to its place."""
    axis %= max(1, x.type.rank)
    rows = _index_of_rows(site, index, axis)
    count, size = index.type.shape[axis], x.type.shape[axis]
    if rows is None or count <= _MOST_STEPS // 8:
        return scatter(site, x, axis, index, source, reduce=reduce)
    many = size * source.type.size
    accept(many <= _MOST_HITS, f"{count} rows written into {size}", "write fewer rows")
    front = site.move(source, axis, 0)
    inner = front.type.shape[1:]
    hit = site.reshape(hits(site, rows, size), (count, size, *(1,) * len(inner)))
    spread = site.reshape(front, (count, 1, *inner))
    spread = site.make("where", hit, spread, site.constant(_NEUTRAL[reduce], x.type.dtype))
    y = site.move(site.make(reduce.removeprefix("a"), spread, axes=(0,)), 0, axis)
    return arithmetic(site, _STEP[reduce], x, y)


_STEP = {"amax": "maximum", "amin": "minimum"}


def _index_of_rows(site: Site, index: Node, axis: int) -> Node | None:
    """The index of whole rows, where ``index`` is one number a row, repeated along it."""
    if index.type.rank == 1:
        return index
    if index.op == "broadcast":
        small = index.operands[0].type.shape
        small = (1,) * (index.type.rank - len(small)) + small
        if prod(small) == small[axis] == index.type.shape[axis]:
            rows = site.reshape(index.operands[0], (small[axis],))
            mark = site.marks.get(index)
            along = mark is not None and mark.axis == axis
            return site.choose(rows, 0, mark.mask) if mark and along else rows
    return None


def _write_step_by_step(
    site: Site, x: Node, axis: int, index: Node, source: Node, reduce: str | None
) -> Node:
    """One element of each row after the other, written where the row's number is the index."""
    shape = [1] * x.type.rank
    shape[axis] = size = x.type.shape[axis]
    numbers = site.constant(
        np.arange(size).reshape(shape), index.type.dtype, f"{site.name}.numbers"
    )
    zero = site.constant(0, x.type.dtype)
    for step in range(index.type.shape[axis]):
        here, value = (site.slice(y, axis, step, step + 1) for y in (index, source))
        hit = site.make("equal", here, numbers)
        if reduce == "add":
            x = site.make("add", x, site.make("where", hit, value, zero))
        elif reduce is not None:
            x = site.make("where", hit, site.make(_STEP[reduce], x, value), x)
        else:
            x = site.make("where", hit, value, x)
    return x


def _write_at_once(
    site: Site, x: Node, axis: int, index: Node, source: Node, reduce: str | None
) -> Node:
    """Every element of a row against every place; of those for one place the last is written."""
    dtype, size, count = x.type.dtype, x.type.shape[axis], index.type.shape[axis]
    many = index.type.size * size
    accept(many <= _MOST_HITS, f"{count} elements a row written into {size}", "write fewer")
    rows, front, values = (site.move(y, axis, -1) for y in (x, index, source))
    hit = hits(site, front, size)  # [..., count, size]
    place = (hit.type.rank - 2,)
    spread = site.reshape(values, (*values.type.shape, 1))
    if reduce is not None:
        neutral = site.constant(_NEUTRAL.get(reduce, 0), dtype)
        spread = site.make("where", hit, spread, neutral)
        step = "sum" if reduce == "add" else reduce.removeprefix("a")
        parts = site.make(step, spread, axes=place)
        y = site.make("add" if reduce == "add" else _STEP[reduce], rows, parts)
    else:
        numbers = site.constant(np.arange(count)[:, None], "i64", f"{site.name}.numbers")
        last = site.make("where", hit, numbers, site.constant(-1, "i64"))
        last = site.make("max", last, axes=place)
        zero = site.constant(0, "i64")
        written = site.make("gather", values, site.make("maximum", last, zero), axis=-1)
        y = site.make("where", site.make("greater_equal", last, zero), written, rows)
    return site.move(y, -1, axis)


def _write(site: Site, x: Node, axis: int, index: Node, source: Node, *, add: bool) -> Node:
    """Rows of ``source`` along ``axis`` written to, or added at, the places in ``index``."""
    places = site.value(index)
    if places is not None and not add and source not in site.marks:
        return written(site, x, source, axis, places)
    shape = site.move(x, axis, 0).type.shape
    rows = site.reshape(site.move(x, axis, 0), (shape[0], prod(shape[1:])))
    count = index.type.size
    source = site.reshape(site.move(source, axis, 0), (count, prod(shape[1:])))
    y = _write_rows(site, rows, index, source, add=add)
    return site.move(site.reshape(y, shape), 0, axis)


def _write_rows(site: Site, rows: Node, index: Node, source: Node, *, add: bool) -> Node:
    size, count = rows.type.shape[0], index.type.size
    index, source = _unsorted(site, index, source)
    if index in site.marks:
        return _write_chosen(site, rows, index, source, add=add)
    order = site.value(index)
    if order is not None and not add:
        choice = np.arange(size)
        choice[order] = size + np.arange(count)
        if np.array_equal(choice, size + np.arange(count)):
            return source
        both = site.concat([rows, source], 0)
        return site.make("take", both, site.constant(choice, "i64", f"{site.name}.order"), axis=0)
    if order is not None and np.array_equal(np.sort(order), np.arange(size).repeat(count // size)):
        return _write_each(site, rows, order, source, None, add=add)
    accept(size * count <= _MOST_HITS, f"{count} rows written into {size}", "write fewer rows")
    return _write_hits(site, rows, hits(site, index, size), source, add=add)


def _unsorted(site: Site, index: Node, source: Node) -> tuple[Node, Node]:
    """Sorted rows and their places, put back in the order they had before."""
    found = before_sorting(index, site.constants.arrays)
    if found is None:
        return index, source
    order, places = found
    back = inverse(order, site.source)
    mark = site.marks.get(index)
    unsorted = make("take", source, back, axis=0, name=f"{site.name}.unsorted", source=site.source)
    fixed = replace(site.constant(places, "i64", f"{site.name}.places"))
    if mark is not None:
        mask = Chosen(0, make("take", mark.mask, back, axis=0, name="mask", source=site.source))
        site.marks[fixed] = mask
        if source in site.marks:
            site.marks.agree([mark, site.marks[source]])
            site.marks[unsorted] = mask
    return fixed, unsorted


def _write_hits(site: Site, rows: Node, hit: Node, source: Node, *, add: bool) -> Node:
    """Rows of ``source`` written where ``hit`` [count, size] says."""
    if add and rows.type.dtype not in FLOATS:
        count, size = hit.type.shape
        each = site.reshape(source, (count, 1, source.type.shape[1]))
        each = site.make(
            "where", site.reshape(hit, (count, size, 1)), each, site.constant(0, rows.type.dtype)
        )
        return site.make("add", rows, site.sum(each, (0,)))
    hit = site.swap(hit, 0, 1)
    if add:
        return site.make("add", rows, site.make("matmul", site.cast(hit, rows.type.dtype), source))
    # Where several rows name one place, torch leaves open which one stays; here it is the first.
    first = site.make("argmax", site.cast(hit, "i32"), axis=1, keep=False)
    covered = site.make("max", hit, axes=(1,), keep=True)
    return site.make("where", covered, site.make("take", source, first, axis=0), rows)


def _write_chosen(site: Site, rows: Node, index: Node, source: Node, *, add: bool) -> Node:
    """Those rows of ``source`` that a mask chose, written or added; the others have no effect."""
    mark = site.marks[index]
    site.marks.agree([mark, site.marks.get(source, mark)])
    places, size = site.held(index), rows.type.shape[0]
    if places is not None and not add and np.array_equal(places, np.arange(size)):
        return site.merge(mark, source, rows)
    source = site.merge(mark, source, site.constant(0, source.type.dtype))
    each = index.type.size // size
    order = None if places is None else np.argsort(places, kind="stable")
    # Every row has as many candidates, one for each slot of its token; or they are anywhere.
    wanted = np.arange(size).repeat(each)
    if places is None or order is None or not np.array_equal(places[order], wanted):
        return _write_hits(site, rows, site.filled(hits(site, index, size)), source, add=add)
    return _write_each(site, rows, places, source, mark.mask, add=add)


def _write_each(
    site: Site, rows: Node, places: np.ndarray, source: Node, mask: Node | None, *, add: bool
) -> Node:
    """As many rows of ``source`` written or added at each place; with a mask, where it holds."""
    size = rows.type.shape[0]
    order = np.argsort(places, kind="stable")
    each = order.size // size
    if not np.array_equal(order, np.arange(order.size)):
        by_row = site.constant(order, "i64", f"{site.name}.order")
        source = site.make("take", source, by_row, axis=0)
        mask = None if mask is None else site.make("take", mask, by_row, axis=0)
    source = site.reshape(source, (size, each, source.type.shape[1]))
    if add:
        return site.make("add", rows, site.sum(source, (1,)))
    if mask is None:
        return site.select(source, 1, 0)
    mask = site.reshape(mask, (size, each))
    for slot in reversed(range(each)):  # the first that was chosen stays
        chosen = site.slice(mask, 1, slot, slot + 1)
        rows = site.make("where", chosen, site.select(source, 1, slot), rows)
    return rows


@lowers("aten.index_add")
def index_add(
    site: Site, x: Node, axis: int, index: Node, source: Node, *, alpha: float = 1
) -> Node:
    source = source if alpha == 1 else arithmetic(site, "mul", source, alpha)
    return _write(site, x, axis % x.type.rank, index, source, add=True)


@lowers("aten.index_copy")
def index_copy(site: Site, x: Node, axis: int, index: Node, source: Node) -> Node:
    return _write(site, x, axis % x.type.rank, index, source, add=False)


@lowers("aten.index_fill")
def index_fill(site: Site, x: Node, axis: int, index: Node, value: Any) -> Node:
    axis %= x.type.rank
    size = x.type.shape[axis]
    covered = site.make("max", hits(site, index, size), axes=(0,), keep=False)
    covered = site.reshape(covered, (size, *(1,) * (x.type.rank - 1 - axis)))
    return site.make("where", covered, site.tensor(value, x.type.dtype), x)


@lowers("aten.index_put", "aten._unsafe_index_put")
def index_put(
    site: Site, x: Node, indices: Sequence[Node | None], values: Node, accumulate: bool = False
) -> Node:
    masks = [i for i in indices if i is not None and i.type.dtype in ("bool", "u8")]
    one = values not in site.marks
    if one and len(indices) == len(masks) == 1 and site.value(masks[0]) is None:
        return _put_by_mask(site, x, masks[0], values, accumulate)
    given = as_numbers(site, indices)
    axes = [axis for axis, i in enumerate(given) if i is not None]
    chosen = [i for i in given if i is not None]
    rest = [axis for axis in range(x.type.rank) if axis not in axes]
    front = site.transpose(x, [*axes, *rest])
    sizes, inner = front.type.shape[: len(axes)], front.type.shape[len(axes) :]
    flat = flat_index(site, chosen, sizes)
    together = axes == list(range(axes[0], axes[-1] + 1))
    before = axes[0] if together else 0
    # Values have the shape of x[indices]: its axes of the index come to the front here too.
    whole = (*inner[:before], *flat.type.shape, *inner[before:])
    values = site.broadcast(site.cast(values, x.type.dtype), whole)
    index_axes = list(range(before, before + flat.type.rank))
    others = [axis for axis in range(len(whole)) if axis not in index_axes]
    values = site.transpose(values, [*index_axes, *others])
    source = site.reshape(values, (flat.type.size, prod(inner)))
    rows = site.reshape(front, (prod(sizes), prod(inner)))
    flat = site.reshape(flat, (flat.type.size,))
    y = site.reshape(_write_rows(site, rows, flat, source, add=accumulate), front.type.shape)
    back = [[*axes, *rest].index(axis) for axis in range(x.type.rank)]
    return site.transpose(y, back)


def _put_by_mask(site: Site, x: Node, mask: Node, values: Node, accumulate: bool) -> Node:
    """One value, or one row of values, wherever the mask holds."""
    inner = x.type.shape[mask.type.rank :]
    shape = values.type.shape
    if len(shape) > len(inner):
        accept(shape[0] == 1, "plain rows written, as many rows as a mask chooses", MASK_ADVICE)
        shape = shape[1:]
    values = site.reshape(site.cast(values, x.type.dtype), shape)
    mask = site.reshape(mask, (*mask.type.shape, *(1,) * len(inner)))
    changed = site.make("add", x, values) if accumulate else values
    return site.make("where", mask, changed, x)


@lowers("aten.masked_scatter")
def masked_scatter(site: Site, x: Node, mask: Node, source: Node) -> Node:
    """The elements of ``source``, one after the other, where the mask holds."""
    shape = site.out.shape
    mark = site.marks.get(source)
    if mark is not None and mark.axis == 0 and source.type.shape == shape == x.type.shape:
        rows = mask.operands[0] if mask.op == "broadcast" else mask
        by_row = rows.type.shape == (shape[0], *(1,) * (len(shape) - 1))
        fits = by_row and same(unshaped(rows), unshaped(mark.mask))
        accept(fits, "rows chosen by one mask, written by another", MASK_ADVICE)
        return site.merge(mark, source, x)
    mask = site.broadcast(truth(site, mask), shape)
    flat = site.cast(site.reshape(mask, (mask.type.size,)), "i64")
    place = site.make("sub", running(site, "add", flat, 0, 0), site.constant(1, "i64"))
    limits = {"low": 0, "high": max(0, source.type.size - 1)}
    place = site.reshape(site.make("clip", place, **limits), shape)
    values = site.reshape(source, (source.type.size,))
    return site.make("where", mask, site.make("take", values, place, axis=0), x)


@lowers("aten.put")
def put(site: Site, x: Node, index: Node, source: Node, accumulate: bool = False) -> Node:
    flat, index, source = (site.reshape(y, (y.type.size,)) for y in (x, index, source))
    y = index_put(site, flat, [index], source, accumulate)
    return site.reshape(y, x.type.shape)
