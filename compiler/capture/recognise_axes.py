"""Where the axes of a value come from: which axes of inputs they are, or none.

A router's scores have an axis of experts, which is one of its weights. Distances between points, or
how well queries meet keys, have two axes that are one axis of an input: what is chosen by these are
neighbours, not experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from operator import mul

from ..ir.graph import Node

Place = tuple[Node, int]  # a value and one of its axes
REDUCTIONS = frozenset({"sum", "mean", "max", "min"})


def chooses_neighbours(top_k: Node) -> bool:
    """Whether a top_k chooses among the same things that its rows are, tokens or points."""
    scores = top_k.operands[0]
    *rows, last = (_origins((scores, axis)) for axis in range(scores.type.rank))
    return any(not last.isdisjoint(each) for each in rows)


def _origins(place: Place) -> set[Place]:
    """The axes of inputs that an axis is, or that are repeated along with it."""
    left, seen, found = [place], {place}, set()
    while left:
        node, axis = left.pop()
        if node.op == "input":
            found.add((node, axis))
        for each in _before(node, axis):
            if each[0].type.shape[each[1]] > 1 and each not in seen:
                seen.add(each)
                left.append(each)
    return found


def _before(node: Node, axis: int) -> Iterator[Place]:
    """The axes of operands that ``axis`` of ``node`` is; none where it is new, or not followed."""
    rank = node.type.rank if len(node.types) == 1 else 0
    if node.op in ("input", "constant", "result", "take", "gather") or not rank:
        return
    x = node.operands[0]
    if node.op == "linear":
        if axis < rank - 1:
            yield x, axis
    elif node.op == "matmul":
        yield from _of_product(node, axis)
    elif node.op == "conv2d":
        if axis != 1:
            yield x, axis
    elif node.op == "reshape":
        yield from _of_reshape(node, axis)
    elif node.op == "transpose":
        yield x, node["order"][axis]
    elif node.op in REDUCTIONS:
        kept = [i for i in range(x.type.rank) if node["keep"] or i not in node["axes"]]
        yield x, kept[axis]
    else:  # by element, or along one axis that stays where it is
        for operand in node.operands:
            behind = axis - (rank - operand.type.rank)
            if behind >= 0:
                yield operand, behind


def _of_product(node: Node, axis: int) -> Iterator[Place]:
    rank = node.type.rank
    for operand, own in zip(node.operands, (rank - 2, rank - 1), strict=True):
        behind = axis - (rank - operand.type.rank)
        if behind >= 0 and (axis == own or axis < rank - 2):
            yield operand, behind


def _of_reshape(node: Node, axis: int) -> Iterator[Place]:
    """The axis of the operand that is as long, and has as many elements in front of it."""
    x = node.operands[0]
    size, fronts = node.type.shape[axis], [1, *accumulate(node.type.shape, mul)]
    for place, front in enumerate([1, *accumulate(x.type.shape, mul)][:-1]):
        if front == fronts[axis] and x.type.shape[place] == size:
            yield x, place
