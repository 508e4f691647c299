"""ATen calls that move, join, cut and repeat, and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir.graph import Node
from .site import Refused, Site, accept, lowers


@lowers(
    "aten.alias",
    "aten.alias_copy",
    "aten.clone",
    "aten.contiguous",
    "aten.detach",
    "aten.detach_",
    "aten.feature_dropout",
    "aten.lift_fresh",
    "aten.lift_fresh_copy",
    "aten.positive",
)
def identity(site: Site, x: Node, *_: Any, **__: Any) -> Node:
    return x


@lowers("aten.dropout", "aten.native_dropout")
def dropout(site: Site, x: Node, p: float, train: bool = False) -> Any:
    advice = "call model.eval() before torch.export, or use nn.Dropout, which eval switches off"
    accept(not train or p == 0, "dropout while training", advice)
    if isinstance(site.out, tuple):
        return x, site.broadcast(site.constant(True, "bool"), x.type.shape)
    return x


@lowers(
    "aten._reshape_alias",
    "aten._unsafe_view",
    "aten.flatten",
    "aten.reshape",
    "aten.squeeze",
    "aten.unflatten",
    "aten.unsqueeze",
    "aten.view",
    "aten.view_as",
    "aten.view_copy",
)
def reshape(site: Site, x: Node, *_: Any) -> Node:
    return site.reshape(x, site.out.shape)


@lowers("aten.view.dtype")
def view_dtype(site: Site, x: Node, dtype: str) -> Node:
    raise Refused(f"the bits of {x.type.dtype} read as {dtype}", "convert with .to(dtype)")


@lowers("aten.permute", "aten.permute_copy")
def permute(site: Site, x: Node, order: Sequence[int]) -> Node:
    return site.transpose(x, [axis % x.type.rank for axis in order])


@lowers("aten.transpose", "aten.swapaxes", "aten.swapdims", "aten.transpose_copy")
def transpose(site: Site, x: Node, a: int, b: int) -> Node:
    return site.swap(x, a, b) if x.type.rank else x


@lowers("aten.t", "aten.numpy_T", "aten.mT", "aten.adjoint", "aten.matrix_H")
def matrix_transpose(site: Site, x: Node) -> Node:
    return site.swap(x, -1, -2) if x.type.rank >= 2 else x


@lowers("aten.movedim", "aten.moveaxis")
def movedim(site: Site, x: Node, source: Any, to: Any) -> Node:
    sources, ends = ([a] if isinstance(a, int) else list(a) for a in (source, to))
    rank = x.type.rank
    moved = {b % rank: a % rank for a, b in zip(sources, ends, strict=True)}
    rest = iter(axis for axis in range(rank) if axis not in moved.values())
    return site.transpose(x, [moved[i] if i in moved else next(rest) for i in range(rank)])


@lowers("aten.expand", "aten.expand_as", "aten.expand_copy", "aten.broadcast_to")
def expand(site: Site, x: Node, *_: Any, **__: Any) -> Node:
    return site.broadcast(x, site.out.shape)


@lowers("aten.fill")
def fill(site: Site, x: Node, value: Node) -> Node:
    return site.broadcast(site.cast(value, site.out.dtype), site.out.shape)


@lowers("aten.copy")
def copy(site: Site, x: Node, source: Node, *_: Any) -> Node:
    return site.broadcast(site.cast(source, site.out.dtype), site.out.shape)


@lowers("aten.repeat", "aten.tile")
def repeat(site: Site, x: Node, counts: Sequence[int]) -> Node:
    rank = len(site.out.shape)
    counts = (1,) * (rank - len(counts)) + tuple(counts)
    shape = (1,) * (rank - x.type.rank) + x.type.shape
    if all(count == 1 or size == 1 for count, size in zip(counts, shape, strict=True)):
        return site.broadcast(site.reshape(x, shape), site.out.shape)
    apart = [n for size in shape for n in (1, size)]
    repeated = [n for pair in zip(counts, shape, strict=True) for n in pair]
    x = site.broadcast(site.reshape(x, apart), repeated)
    return site.reshape(x, site.out.shape)


@lowers("aten.repeat_interleave.self_int")
def repeat_interleave(site: Site, x: Node, repeats: int, axis: int | None = None, **_: Any) -> Node:
    x = site.reshape(x, (x.type.size,)) if axis is None else x
    axis = 0 if axis is None else axis % x.type.rank
    shape = x.type.shape
    x = site.reshape(x, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
    x = site.broadcast(x, (*shape[: axis + 1], repeats, *shape[axis + 1 :]))
    return site.reshape(x, site.out.shape)


@lowers("aten.slice", "aten.slice_copy", "aten.narrow", "aten.narrow_copy")
def slice_(
    site: Site,
    x: Node,
    axis: int = 0,
    start: int | None = 0,
    stop: int | None = None,
    step: int = 1,
) -> Node:
    axis %= x.type.rank
    size = x.type.shape[axis]
    if site.operator.startswith("narrow"):
        first = (start or 0) % size if size else 0
        return site.slice(x, axis, first, first + (stop or 0))
    begin, end, step = slice(start, stop, step).indices(size)
    return site.slice(x, axis, begin, max(begin, end), step)


@lowers("aten.select", "aten.select_copy")
def select(site: Site, x: Node, axis: int, index: int) -> Node:
    axis %= x.type.rank
    return site.select(x, axis, index % x.type.shape[axis])


@lowers(
    "aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split", "aten.unsafe_split"
)
def split(site: Site, x: Node, _: Any, axis: int = 0) -> tuple[Node, ...]:
    axis %= x.type.rank
    advice = "count with torch.bincount(index, minlength=...), and split by its running sum"
    accept(all(part is not None for part in site.out), "parts as long as the data tells", advice)
    parts, start = [], 0
    for part in site.out:
        stop = start + part.shape[axis]
        parts.append(site.slice(x, axis, start, stop))
        start = stop
    return tuple(parts)


@lowers("aten.unbind", "aten.unbind_copy")
def unbind(site: Site, x: Node, axis: int = 0) -> tuple[Node, ...]:
    axis %= x.type.rank
    return tuple(site.select(x, axis, index) for index in range(x.type.shape[axis]))


@lowers("aten.cat", "aten.concat", "aten.concatenate")
def cat(site: Site, parts: Sequence[Node], axis: int = 0) -> Node:
    # torch lets an empty tensor of one axis join anything.
    parts = [part for part in parts if part.type.shape != (0,) or len(site.out.shape) == 1]
    parts = [site.cast(part, site.out.dtype) for part in parts]
    return site.concat(parts, axis % len(site.out.shape))


@lowers("aten.stack")
def stack(site: Site, parts: Sequence[Node], axis: int = 0) -> Node:
    axis %= len(site.out.shape)
    shape = parts[0].type.shape
    shape = (*shape[:axis], 1, *shape[axis:])
    return site.concat(
        [site.reshape(site.cast(part, site.out.dtype), shape) for part in parts], axis
    )


@lowers("aten.roll")
def roll(site: Site, x: Node, shifts: Any, axes: Any = ()) -> Node:
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    axes = [axes] if isinstance(axes, int) else list(axes)
    shape = x.type.shape
    if not axes:
        x, axes = site.reshape(x, (x.type.size,)), [0]
    for shift, axis in zip(shifts, axes, strict=True):
        axis %= x.type.rank
        size = x.type.shape[axis]
        cut = -shift % size if size else 0
        x = site.concat([site.slice(x, axis, cut, size), site.slice(x, axis, 0, cut)], axis)
    return site.reshape(x, shape)


def reorder(site: Site, x: Node, axis: int, order: np.ndarray) -> Node:
    """``x`` with an axis replaced by a fixed choice of its elements, of any rank."""
    if order.ndim == 1 and np.array_equal(order, np.arange(x.type.shape[axis])):
        return x
    return site.make("take", x, site.constant(order, "i32", f"{site.name}.order"), axis=axis)


@lowers("aten.flip")
def flip(site: Site, x: Node, axes: Sequence[int]) -> Node:
    for axis in axes:
        axis %= x.type.rank
        x = reorder(site, x, axis, np.arange(x.type.shape[axis])[::-1])
    return x


@lowers("aten.constant_pad_nd")
def constant_pad(site: Site, x: Node, padding: Sequence[int], value: float = 0) -> Node:
    for at, (before, after) in enumerate(zip(padding[::2], padding[1::2], strict=True)):
        axis = x.type.rank - 1 - at
        size = x.type.shape[axis]
        x = site.slice(x, axis, max(0, -before), size - max(0, -after))
        shape = x.type.shape
        fill = site.constant(value, x.type.dtype)
        x = site.concat(
            [
                x
                if width is None
                else site.broadcast(fill, (*shape[:axis], width, *shape[axis + 1 :]))
                for width in (max(0, before), None, max(0, after))
                if width != 0
            ],
            axis,
        )
    return x


@lowers("aten.pad")
def pad(
    site: Site, x: Node, padding: Sequence[int], mode: str = "constant", value: float | None = None
) -> Node:
    if mode == "constant":
        return constant_pad(site, x, padding, value or 0)
    if any(width < 0 for width in padding):
        raise Refused(f"negative {mode} padding", "slice the tensor")
    styles = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    for at, widths in enumerate(zip(padding[::2], padding[1::2], strict=True)):
        axis = x.type.rank - 1 - at
        order = np.pad(np.arange(x.type.shape[axis]), widths, mode=styles[mode])  # type: ignore[call-overload]
        x = reorder(site, x, axis, order)
    return x


@lowers("aten.reflection_pad1d", "aten.reflection_pad2d", "aten.reflection_pad3d")
def reflection_pad(site: Site, x: Node, padding: Sequence[int]) -> Node:
    return pad(site, x, padding, "reflect")


@lowers("aten.replication_pad1d", "aten.replication_pad2d", "aten.replication_pad3d")
def replication_pad(site: Site, x: Node, padding: Sequence[int]) -> Node:
    return pad(site, x, padding, "replicate")


@lowers("aten.unfold", "aten.unfold_copy")
def unfold(site: Site, x: Node, axis: int, size: int, step: int) -> Node:
    axis %= x.type.rank
    starts = np.arange(0, x.type.shape[axis] - size + 1, step)
    windows = reorder(site, x, axis, starts[:, None] + np.arange(size))
    return site.move(windows, axis + 1, -1)


@lowers("aten.pixel_shuffle")
def pixel_shuffle(site: Site, x: Node, factor: int) -> Node:
    *batch, channels, height, width = x.type.shape
    r, rank = factor, len(batch)
    x = site.reshape(x, (*batch, channels // r**2, r, r, height, width))
    order = [*range(rank), *(rank + i for i in (0, 3, 1, 4, 2))]
    return site.reshape(site.transpose(x, order), site.out.shape)


@lowers("aten.pixel_unshuffle")
def pixel_unshuffle(site: Site, x: Node, factor: int) -> Node:
    *batch, channels, height, width = x.type.shape
    r, rank = factor, len(batch)
    x = site.reshape(x, (*batch, channels, height // r, r, width // r, r))
    order = [*range(rank), *(rank + i for i in (0, 2, 4, 1, 3))]
    return site.reshape(site.transpose(x, order), site.out.shape)


@lowers("aten.tril", "aten.triu")
def triangle(site: Site, x: Node, diagonal: int = 0) -> Node:
    ones = np.ones(x.type.shape[-2:], bool)
    keep = (np.tril if site.operator == "tril" else np.triu)(ones, diagonal)
    zero = site.constant(0, x.type.dtype)
    return site.make("where", site.constant(keep, "bool"), x, zero)


def written(site: Site, x: Node, source: Node, axis: int, places: np.ndarray) -> Node:
    """``x`` with the slices of ``source`` along an axis in the given places.

    Where ``x`` was written to before, what is overwritten now is left out of the graph.
    """
    size = x.type.shape[axis]
    order: np.ndarray
    parts, order = _written_before(site, x, axis) or ([x], np.arange(size))
    total = sum(part.type.shape[axis] for part in parts)
    order = order.copy()
    order[places] = total + np.arange(len(places))
    kept: list[Node] = []
    new, start = order.copy(), 0
    for part in (*parts, source):
        stop = start + part.type.shape[axis]
        inside = (order >= start) & (order < stop)
        if inside.any():
            new[inside] = order[inside] - start + sum(x.type.shape[axis] for x in kept)
            kept.append(part)
        start = stop
    return reorder(site, site.concat(kept, axis), axis, new)


def _written_before(site: Site, x: Node, axis: int) -> tuple[list[Node], np.ndarray] | None:
    """What ``x`` was put together of along an axis, and which slice of that stands where."""
    if x.op != "take" or x in site.marks or x["axis"] % x.type.rank != axis:
        return None
    joined, order = x.operands[0], site.held(x.operands[1])
    if joined.op != "concat" or joined["axis"] % x.type.rank != axis or order is None:
        return None
    return list(joined.operands), order.astype(np.int64)


@lowers("aten.slice_scatter")
def slice_scatter(
    site: Site,
    x: Node,
    source: Node,
    axis: int = 0,
    start: int | None = None,
    stop: int | None = None,
    step: int = 1,
) -> Node:
    axis %= x.type.rank
    size = x.type.shape[axis]
    begin, end, step = slice(start, stop, step).indices(size)
    source = site.cast(source, x.type.dtype)
    if step == 1:
        end = max(begin, end)
        ends = site.slice(x, axis, 0, begin), site.slice(x, axis, end, size)
        return site.concat([ends[0], source, ends[1]], axis)
    return written(site, x, source, axis, np.arange(size)[begin:end:step])


@lowers("aten.select_scatter")
def select_scatter(site: Site, x: Node, source: Node, axis: int, index: int) -> Node:
    axis %= x.type.rank
    index %= x.type.shape[axis]
    shape = x.type.shape
    source = site.reshape(source, (*shape[:axis], 1, *shape[axis + 1 :]))
    return slice_scatter(site, x, source, axis, index, index + 1)
