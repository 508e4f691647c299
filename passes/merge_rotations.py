"""Merge layers of Givens rotations into rotations of larger blocks, as few shuffles as can be.

    %1 = rotate(%x, %layer0, %e) : f32[T, 64]      blocks f32[E, 32, 2, 2]
    %2 = shuffle(%1, %deinterleave)
    %3 = rotate(%2, %layer1, %e)                   blocks f32[E, 32, 2, 2]
    %4 = shuffle(%3, %deinterleave)
    ->
    %3 = rotate(%x, %layer1, %e)                   blocks f64[E, 16, 4, 4]
    %4 = shuffle(%3, %order)

L layers with any fixed shuffle between them rotate closed groups of channels, of at most 2**L: a
permutation, a block-diagonal matrix, a permutation. Products of blocks are kept in double
precision. Groups that only padding enters, or of which nothing is read, are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..compiler.errors import UsageError
from ..compiler.ir import Graph, Node, remake
from .base import Walk, is_constant, rewrite
from .orders import (
    Order,
    compose,
    compose_shuffles,
    from_product,
    inverse,
    is_identity,
    is_permutation,
    order_of,
    shuffled,
)

Array = np.ndarray


def is_rotation(node: Node) -> bool:
    """Whether ``node`` rotates neighbouring channels by fixed blocks."""
    return node.op == "rotate" and is_constant(node.operands[1]) and node["lanes"] == 1


def closed_groups(between: Order, inner: int, outer: int, most: int) -> Array | None:
    """Groups of channels that two rotations with ``between`` couple; [G, b], or None.

    The rotations have neighbouring groups of ``inner`` and ``outer`` channels; the groups are given
    in the channels of the first, ordered by their first. None if they do not pack into groups of
    one size b, a power of two, at most ``most``.
    """
    width = between.size
    root = np.arange(width // inner)
    for group in between.reshape(-1, outer) // inner:
        roots = root[group]
        joined = np.isin(root, roots)
        root[joined] = roots.min()
        if joined.sum() * inner > most:
            return None
    labels = np.repeat(root, inner)
    parts = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    b = 1 << (max(map(len, parts)) - 1).bit_length()
    return _packed(parts, b) if b <= most else None


def _packed(parts: list[Array], b: int) -> Array | None:
    """``parts`` joined, first fit, into groups of exactly ``b`` channels; None if gaps are left."""
    full: list[list[int]] = []
    open_: list[list[int]] = []
    for part in sorted(parts, key=len, reverse=True):
        place = next((group for group in open_ if len(group) + len(part) <= b), None)
        if place is None:
            open_.append(place := [])
        place.extend(map(int, part))
        if len(place) == b:
            full.append(place)
            open_.remove(place)
    return None if open_ else np.array(sorted(sorted(group) for group in full))


def entries(blocks: Array, rows: Array, columns: Array) -> Array:
    """The part [E, G, b, b] of a block-diagonal matrix at ``rows`` and ``columns``, each [G, b]."""
    b = blocks.shape[-1]
    r, c = rows[:, :, None], columns[:, None, :]
    inside = r // b == c // b
    return np.where(inside, blocks[:, r // b, r % b, c % b], 0)


def merge(most: int, node: Node, walk: Walk) -> Node | None:
    """rotate . shuffle . rotate as shuffle . rotate . shuffle."""
    if not is_rotation(node):
        return None
    middle, width = node.operands[0], node.type.shape[-1]
    between = order_of(middle, walk)
    inner = middle if between is None else middle.operands[0]
    order = np.arange(width, dtype=np.int32) if between is None else between
    chained = is_rotation(inner) and inner.operands[2] is node.operands[2]
    if not chained or not (walk.read_once(middle) and walk.read_once(inner)):
        return None
    if inner.type.shape[-1] != width or not is_permutation(order, width):
        return None
    first, second = (walk.value(n.operands[1]).astype(np.float64) for n in (inner, node))
    groups = closed_groups(order, first.shape[-1], second.shape[-1], most)
    if groups is None:
        return None
    # Channel c of the first rotation is channel place[c] of the second.
    place = inverse(order, width)
    outputs = np.sort(place[groups], axis=1)
    blocks = entries(second, outputs, place[groups]) @ entries(first, groups, groups)
    x = shuffled(inner.operands[0], groups.ravel().astype(np.int32), walk, inner)
    merged = remake(node, x, walk.constant(blocks, node.operands[1].name), node.operands[2])
    return shuffled(merged, inverse(outputs.ravel(), width), walk, middle)


def drop_padding(node: Node, walk: Walk) -> Node | None:
    """A rotation without the groups that hold only zeros, which stay zeros."""
    if not is_rotation(node):
        return None
    order = order_of(node.operands[0], walk)
    if order is None:
        return None
    blocks = walk.value(node.operands[1])
    live = (order.reshape(blocks.shape[1], -1) >= 0).any(1)
    if live.all() or not live.any():
        return None
    kept = np.flatnonzero(np.repeat(live, blocks.shape[-1])).astype(np.int32)
    x = shuffled(node.operands[0], kept, walk, node.operands[0])
    fewer = walk.constant(blocks[:, live], node.operands[1].name)
    narrow = remake(node, x, fewer, node.operands[2])
    return shuffled(narrow, inverse(kept, order.size), walk, node)


def drop_unread(node: Node, walk: Walk) -> Node | None:
    """A shuffled rotation without the groups of which no channel is taken."""
    order, rotation = order_of(node, walk), node.operands[0] if node.operands else node
    if order is None or not is_rotation(rotation) or not walk.read_once(rotation):
        return None
    if order_of(rotation.operands[0], walk) is None:
        return None
    blocks = walk.value(rotation.operands[1])
    width = blocks.shape[1] * blocks.shape[2]
    live = (inverse(order, width).reshape(blocks.shape[1], -1) >= 0).any(1)
    if live.all() or not live.any():
        return None
    kept = np.flatnonzero(np.repeat(live, blocks.shape[-1])).astype(np.int32)
    x = shuffled(rotation.operands[0], kept, walk, rotation.operands[0])
    fewer = walk.constant(blocks[:, live], rotation.operands[1].name)
    narrow = remake(rotation, x, fewer, rotation.operands[2])
    return shuffled(narrow, compose(inverse(kept, width), order), walk, node)


def regroup(node: Node, walk: Walk) -> Node | None:
    """shuffle . rotate . shuffle with the groups, and the channels in each, so that a shuffle goes.

    One in front is free where a product makes its channels; one behind usually folds away.
    """
    after, rotation = order_of(node, walk), node.operands[0] if node.operands else node
    if after is None or not is_rotation(rotation) or not walk.read_once(rotation):
        return None
    start, blocks = rotation.operands[0], walk.value(rotation.operands[1])
    width = blocks.shape[1] * blocks.shape[2]
    given = order_of(start, walk)
    before = np.arange(width, dtype=np.int32) if given is None else given
    x = start if given is None else start.operands[0]
    in_front = 0.5 if from_product(x, walk) else 2.0

    def cost(before: Order, after: Order) -> float:
        behind = not is_identity(after, width)
        return in_front * (not is_identity(before, x.type.shape[-1])) + 1.0 * behind

    keys = before, inverse(after, width)
    best, choice = cost(before, after), None
    for leading in keys:
        inputs, outputs = _places(leading, *keys, blocks.shape[1])
        moved = before[inputs.ravel()], compose(inverse(outputs.ravel(), width), after)
        if cost(*moved) < best:
            best, choice = cost(*moved), (inputs, outputs, *moved)
    if choice is None:
        return None
    inputs, outputs, before, after = choice
    changed = walk.constant(entries(blocks, outputs, inputs), rotation.operands[1].name)
    x = shuffled(x, before, walk, start if given is not None else rotation)
    return shuffled(remake(rotation, x, changed, rotation.operands[2]), after, walk, node)


def _places(leading: Order, before: Order, after: Order, groups: int) -> tuple[Array, Array]:
    """Input and output channels [G, b]: groups ordered by ``leading``, members by their own order.

    Channels that an order drops come last.
    """
    width = leading.size
    keys = [np.where(k < 0, width, k).reshape(groups, -1) for k in (leading, before, after)]
    rank = np.argsort(keys[0].min(1), kind="stable")
    channels = np.arange(width).reshape(groups, -1)
    inputs, outputs = (
        np.take_along_axis(channels, np.argsort(key, 1, kind="stable"), 1)[rank] for key in keys[1:]
    )
    return inputs, outputs


@dataclass(frozen=True)
class MergeRotations:
    """Rotations of blocks up to ``max_block``, a power of two: L layers become L / log2 of it."""

    max_block: int = 4

    name = "merge_rotations"
    exact = True

    def __post_init__(self) -> None:
        if self.max_block < 2 or self.max_block & (self.max_block - 1):
            raise UsageError(f"max_block = {self.max_block}", help="give a power of two from 2 up")

    def __call__(self, graph: Graph) -> Graph:
        def merge_layers(node: Node, walk: Walk) -> Node | None:
            return merge(self.max_block, node, walk)

        graph = rewrite(graph, compose_shuffles, merge_layers)
        # Only now: a layer without its dead groups would no longer meet the next one's.
        graph = rewrite(graph, compose_shuffles, drop_padding, drop_unread)
        return rewrite(graph, compose_shuffles, regroup)
