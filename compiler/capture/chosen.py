"""Rows that the data chooses: all candidates are kept, and a mask tells which of them count.

`x[mask]` has as many rows as `mask` has true elements, a number that no compiled model can know.
Here it has one row for every element of the mask, and is marked with it. A mark follows the rows
through all that computes row by row; where rows are summed or written, the others are left out by
the mask. What would mix rows in another way is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from ..ir.build import make
from ..ir.graph import Node
from ..ir.ops import elementwise
from .refused import Refused

_ADVICE = "keep all rows, and select with torch.where(mask, ..., 0) where they are added up"
Axes = Mapping[int, int]  # number of an operand -> its axis of chosen rows


@dataclass(frozen=True)
class Chosen:
    """Which axis holds candidate rows, and a mask [N] of those that were chosen."""

    axis: int
    mask: Node


class Marks(dict[Node, Chosen]):
    """The marked values that one call reads or makes."""

    def follow(self, node: Node) -> None:
        """Marks ``node`` if an operand is marked. Raises Refused where it mixes rows."""
        found = {i: self[x] for i, x in enumerate(node.operands) if x in self}
        if not found:
            return
        axes = {i: mark.axis for i, mark in found.items()}
        if node.op == "concat" and _joins(node) in axes.values():
            self[node] = Chosen(_joins(node), self._joined(node))
            return
        mask = self.agree(list(found.values()))
        if node.op == "reshape" and (rows := _whole_rows(node, found[0])) is not None:
            self[node] = rows
            return
        axis = row_axis(node, axes)
        if axis is None:
            raise Refused(f"rows chosen by the data mixed by '{node.op}'", _ADVICE)
        self[node] = Chosen(axis, mask)

    def agree(self, marks: Sequence[Chosen]) -> Node:
        """The mask of all ``marks``. Raises Refused where they differ."""
        first, *others = (mark.mask for mark in marks)
        if not all(same(unshaped(first), unshaped(mask)) for mask in others):
            raise Refused("rows chosen by different masks, together", _ADVICE)
        return first

    def _joined(self, node: Node) -> Node:
        """The mask of rows joined one behind the other; rows that are not chosen all count."""
        axis = _joins(node)
        if any(self[x].axis != axis for x in node.operands if x in self):
            raise Refused("rows chosen by the data joined along two axes", _ADVICE)
        if not all(x in self for x in node.operands):
            raise Refused("rows chosen by the data joined with others", _ADVICE)
        masks = [self[x].mask for x in node.operands]
        return make("concat", *masks, name="mask", source=node.source, axis=0)

    def closed(
        self, op: str, operands: tuple[Node, ...], attributes: Mapping[str, Any], fill: Any
    ) -> tuple[Node, ...]:
        """``operands`` of a sum over chosen rows with zeros in all others: unmarked."""
        if op in ("sum", "max") and operands[0] in self:
            x = operands[0]
            axes = {axis % x.type.rank for axis in attributes["axes"]}
            allowed = op == "sum" or x.type.dtype == "bool"
            return (fill(x),) if self[x].axis in axes and allowed else operands
        if op == "matmul":
            a, b = operands
            inner = [(a, a.type.rank - 1), (b, b.type.rank - 2)]
            if any(x in self and self[x].axis == axis for x, axis in inner):
                self.agree([self[x] for x in operands if x in self])
                return tuple(fill(x) if x in self else x for x in operands)
        return operands


def row_axis(node: Node, axes: Axes) -> int | None:
    """Along which axis ``node`` has the rows that its operands have along ``axes``.

    None where it mixes them, or where an operand beside them tells rows apart.
    """
    rule = _RULES.get(node.op)
    return None if rule is None else rule(node, axes)


def same(a: Node, b: Node) -> bool:
    """Whether two nodes compute the same, whatever their names."""
    leaders: dict[Node, Node] = {}  # of nodes taken for the same: what two share is seen once

    def leader(node: Node) -> Node:
        while node in leaders:
            above = leaders[node]
            leaders[node] = leaders.get(above, above)
            node = above
        return node

    pairs = [(a, b)]
    while pairs:
        a, b = map(leader, pairs.pop())
        if a is b:
            continue
        if not _same_but_for_operands(a, b):
            return False
        leaders[a] = b
        pairs.extend(zip(a.operands, b.operands, strict=True))
    return True


def unshaped(node: Node) -> Node:
    """What holds the elements of ``node`` in the same order, whatever its shape."""
    while node.op == "reshape":
        node = node.operands[0]
    return node


def _same_but_for_operands(a: Node, b: Node) -> bool:
    return (
        a.op == b.op
        and a.op != "input"
        and a.types == b.types
        and dict(a.attributes) == dict(b.attributes)
        and len(a.operands) == len(b.operands)
    )


def _whole_rows(node: Node, elements: Chosen) -> Chosen | None:
    """The mark of rows [N, width], put together again of chosen elements [N width].

    None where a row might be chosen in part.
    """
    if elements.axis or node.operands[0].type.rank != 1 or node.type.rank != 2:
        return None
    mask, count = unshaped(elements.mask), node.type.shape[0]
    if mask.op != "broadcast" or mask.operands[0].type.size != count:
        return None
    varying = [axis for axis in range(mask.type.rank) if not is_uniform(mask, axis)]
    if prod(mask.type.shape[: max(varying, default=-1) + 1]) != count:
        return None
    rows = mask.operands[0]
    return Chosen(0, make("reshape", rows, name="mask.rows", source=node.source, shape=(count,)))


# --- where an op's result holds the rows of its operands; None where it mixes them ---


def _elementwise(node: Node, axes: Axes) -> int | None:
    rank = node.type.rank
    found = {rank - node.operands[i].type.rank + axis for i, axis in axes.items()}
    if len(found) > 1:
        return None
    axis = found.pop()
    others = (x for i, x in enumerate(node.operands) if i not in axes)
    return axis if all(is_uniform(x, axis - rank + x.type.rank) for x in others) else None


def is_uniform(x: Node, axis: int) -> bool:
    """Whether ``x`` holds the same along ``axis``, which may lie in front of its first."""
    if axis < 0 or x.type.shape[axis] == 1:
        return True
    if x.op != "broadcast":
        return False
    return is_uniform(x.operands[0], axis - x.type.rank + x.operands[0].type.rank)


def _reshape(node: Node, axes: Axes) -> int | None:
    shape = node.operands[0].type.shape
    before, size = prod(shape[: axes[0]]), shape[axes[0]]
    fits = (
        axis
        for axis, n in enumerate(node.type.shape)
        if n == size and prod(node.type.shape[:axis]) == before
    )
    return next(fits, None)


def _transpose(node: Node, axes: Axes) -> int | None:
    return int(node["order"].index(axes[0]))


def _broadcast(node: Node, axes: Axes) -> int | None:
    return axes[0] + node.type.rank - node.operands[0].type.rank


def _off_axis(node: Node, axes: Axes) -> int | None:
    """An op along one other axis."""
    axis = axes[0]
    return axis if node["axis"] % node.operands[0].type.rank != axis else None


def _joins(node: Node) -> int:
    """Along which axis a concat joins its parts."""
    return int(node["axis"]) % node.type.rank


def _concat(node: Node, axes: Axes) -> int | None:
    found = set(axes.values())
    axis = found.pop()
    others = (x for i, x in enumerate(node.operands) if i not in axes)
    apart = not found and axis != _joins(node)
    return axis if apart and all(is_uniform(x, axis) for x in others) else None


def _take(node: Node, axes: Axes) -> int | None:
    x, index = node.operands
    along = node["axis"] % x.type.rank
    if 0 not in axes:
        return int(along + axes[1])
    if 1 in axes or axes[0] == along:
        return None
    return int(axes[0] if axes[0] < along else axes[0] + index.type.rank - 1)


def _gather(node: Node, axes: Axes) -> int | None:
    along = node["axis"] % node.type.rank
    axis = next(iter(axes.values()))
    both = axes == {0: axis, 1: axis}
    uniform = all(is_uniform(x, axis) for i, x in enumerate(node.operands) if i not in axes)
    return axis if axis != along and (both or uniform) else None


def _reduction(node: Node, axes: Axes) -> int | None:
    gone = node["axes"] if "axes" in node.attributes else (node["axis"],)
    gone = {axis % node.operands[0].type.rank for axis in gone}
    if axes[0] in gone:
        return None
    return axes[0] if node["keep"] else axes[0] - sum(axis < axes[0] for axis in gone)


def _rows_of_first(node: Node, axes: Axes) -> int | None:
    """An op along the last axis of its first operand, with weights."""
    last = node.operands[0].type.rank - 1
    return axes[0] if set(axes) == {0} and axes[0] != last else None


def _images(_: Node, axes: Axes) -> int | None:
    return 0 if axes == {0: 0} else None


def _matmul(node: Node, axes: Axes) -> int | None:
    rank = node.type.rank
    places = set()
    for i, axis in axes.items():
        place = rank - node.operands[i].type.rank + axis
        if place == (rank - 1, rank - 2)[i]:
            return None  # along the inner axis, and no sum over it
        places.add(place)
    if len(places) > 1:
        return None
    place = places.pop()
    if place >= rank - 2:
        return place if len(axes) == 1 else None
    others = (x for i, x in enumerate(node.operands) if i not in axes)
    return place if all(is_uniform(x, place - rank + x.type.rank) for x in others) else None


_RULES: dict[str, Callable[[Node, Axes], int | None]] = {
    **{entry.name: _elementwise for entry in elementwise.OPS},
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast": _broadcast,
    "slice": _off_axis,
    "concat": _concat,
    "take": _take,
    "gather": _gather,
    "sum": _reduction,
    "mean": _reduction,
    "max": _reduction,
    "min": _reduction,
    "argmax": _reduction,
    "softmax": _off_axis,
    "linear": _rows_of_first,
    "layer_norm": _rows_of_first,
    "top_k": _rows_of_first,
    "result": lambda _, axes: axes[0],
    "conv2d": _images,
    "matmul": _matmul,
}
