"""Candidates that share a row are computed once.

A loop over experts that picks (token, slot) pairs reads each token's row once for every slot. What
is computed row by row from there is the same for all of them, so the repetition comes afterwards:

    op(take(x, rows))  ->  take(op(x), rows)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir.build import make, remake
from ..ir.graph import Graph, Node, rebuild
from .chosen import Axes, is_uniform, row_axis

# Ops whose other operands, weights, hold no rows.
_WITH_WEIGHTS = frozenset({"linear", "layer_norm"})
_SHAPED = frozenset({"reshape", "broadcast"})


@dataclass(frozen=True)
class Repeated:
    """A value whose rows along ``axis`` are those of ``base`` by a constant ``index``, no fewer."""

    base: Node
    axis: int
    index: Node


def share_rows(graph: Graph) -> Graph:
    """The graph with what repeats rows behind what is computed row by row."""
    repeated: dict[Node, Repeated] = {}

    def change(node: Node) -> Node:
        found = _repetition(graph, node) or _computed_once(node, repeated)
        if found is None:
            return node
        if np.array_equal(graph.value(found.index), np.arange(found.base.type.shape[found.axis])):
            return found.base
        if found.base is not node.operands[0]:
            node = make(
                "take",
                found.base,
                found.index,
                name=node.name,
                source=node.source,
                axis=found.axis,
            )
        repeated[node] = found
        return node

    changed = rebuild(graph, change)
    used = {str(node["digest"]) for node in changed.nodes if node.op == "constant"}
    kept = {digest: array for digest, array in changed.constants.items() if digest in used}
    return Graph(changed.name, changed.inputs, changed.outputs, kept, changed.notes)


def _repetition(graph: Graph, node: Node) -> Repeated | None:
    """``node`` as the take that repeats rows of its operand."""
    if node.op != "take" or node.operands[1].op != "constant":
        return None
    x, index = node.operands
    axis = node["axis"] % x.type.rank
    if index.type.rank != 1 or index.type.size < x.type.shape[axis]:
        return None
    return Repeated(x, axis, index)


def _computed_once(node: Node, repeated: dict[Node, Repeated]) -> Repeated | None:
    """``node`` computed from the rows before they are repeated, if it works row by row."""
    found = {i: repeated[x] for i, x in enumerate(node.operands) if x in repeated}
    if not found or len(node.types) > 1:
        return None
    sizes = {part.base.type.shape[part.axis] for part in found.values()}
    if len({part.index["digest"] for part in found.values()}) > 1 or len(sizes) > 1:
        return None
    axes = {i: part.axis for i, part in found.items()}
    axis = row_axis(node, axes)
    if axis is None:
        return None
    size = next(iter(sizes))
    operands = [
        found[i].base if i in found else _one_row_like_all(node, x, axis, size)
        for i, x in enumerate(node.operands)
    ]
    if not _others_hold_no_rows(node, operands, axes, axis, size):
        return None
    shaped = {}
    if node.op in _SHAPED:
        shape = list(node["shape"])
        shape[axis] = size
        shaped["shape"] = tuple(shape)
    return Repeated(remake(node, *operands, **shaped), axis, next(iter(found.values())).index)


def _one_row_like_all(node: Node, x: Node, axis: int, size: int) -> Node:
    """``x``, with ``size`` rows in place of those of ``node`` where it is one row, repeated."""
    at = axis - node.type.rank + x.type.rank
    if x.op != "broadcast" or at < 0 or node.op in _WITH_WEIGHTS or not is_uniform(x, at):
        return x
    shape = list(x.type.shape)
    shape[at] = size
    inner = at - x.type.rank + x.operands[0].type.rank
    held = inner >= 0 and x.operands[0].type.shape[inner] != 1
    return x if held else remake(x, *x.operands, shape=tuple(shape))


def _others_hold_no_rows(
    node: Node, operands: list[Node], axes: Axes, axis: int, size: int
) -> bool:
    """Whether the operands that are not repeated have nothing along the axis of rows.

    Or all the same, in as many rows as are computed once.
    """
    if node.op in _WITH_WEIGHTS:
        return True
    if node.op == "take":
        return 1 not in axes  # an index of another axis
    places = (
        (x, axis - node.type.rank + x.type.rank) for i, x in enumerate(operands) if i not in axes
    )
    return all(
        at < 0 or x.type.shape[at] == 1 or (x.type.shape[at] == size and is_uniform(x, at))
        for x, at in places
    )
