"""Rows in the order of a sort are computed before they are sorted.

Models that sort (token, slot) pairs by expert put what they computed back in place afterwards. What
is computed row by row does not hang on the order, so the sort goes to the end, where it is undone:

    op(take(x, order))                    ->  take(op(x), order)
    take(take(x, order), argsort(order))  ->  x
    the sum of take(x, order) over rows   ->  the sum of x
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..ir.build import make, remake, result
from ..ir.graph import Graph, Node, constant, rebuild, topological_order
from ..ir.interpret import interpret
from .chosen import row_axis


@dataclass(frozen=True)
class Sorted:
    """A value whose rows along ``axis`` are those of ``base``, in ``order``."""

    base: Node
    axis: int
    order: Node


def is_order(node: Node) -> bool:
    """Whether a node holds the places that sort one axis: each place once."""
    if node.op != "result" or node["index"] != 1:
        return False
    x = node.operands[0].operands[0]
    return x.type.rank == 1 and node.operands[0]["k"] == x.type.size


def inverse(order: Node, source: str = "") -> Node:
    """The order that undoes ``order``."""
    backwards = make("neg", order, name=f"{order.name}.neg", source=source)
    pair = make("top_k", backwards, k=order.type.size, name=f"{order.name}.inverse", source=source)
    return result(pair, 1)


def before_sorting(
    index: Node, constants: Mapping[str, np.ndarray]
) -> tuple[Node, np.ndarray] | None:
    """The order behind a row of numbers that is computed from an order alone, number by number.

    And what it would be for rows in their places: ``index == take(array, order)``.
    """
    order = _order_behind(index, constants) if index.type.rank == 1 else None
    if order is None:
        return None
    held = dict(constants)
    places = constant(held, np.arange(order.type.size), "places")
    changed: dict[Node, Node] = {order: places}
    graph = Graph("index", (), (_substituted(index, changed),), held)
    return order, interpret(graph)[0]


def _order_behind(index: Node, constants: Mapping[str, np.ndarray]) -> Node | None:
    """The one order that ``index`` is computed from, row by row and from nothing else."""
    axes: dict[Node, int | None] = {}  # where a node has the order's rows; None for what is fixed
    orders: set[Node] = set()
    stack = [index]
    while stack:
        node = stack[-1]
        waiting = [x for x in node.operands if x not in axes]
        if node in axes:
            stack.pop()
        elif is_order(node):
            axes[node] = 0
            orders.add(node)
        elif node.op == "constant":
            axes[node] = None
        elif not node.operands:
            return None
        elif waiting:
            stack.extend(waiting)
        else:
            rows = {i: axis for i, x in enumerate(node.operands) if (axis := axes[x]) is not None}
            axes[node] = _axis(node, rows, constants) if rows else None
            if rows and axes[node] is None:
                return None
    return orders.pop() if len(orders) == 1 else None


def _axis(node: Node, rows: dict[int, int], constants: Mapping[str, np.ndarray]) -> int | None:
    """Along which axis ``node`` has the rows that its operands have along ``rows``."""
    if node.op == "take" and node.operands[1].op == "constant" and node.type.rank == 1:
        places = constants[str(node.operands[1]["digest"])]
        if np.array_equal(places, np.arange(node.operands[0].type.size)):
            return rows[0]
    return row_axis(node, rows) if len(node.types) == 1 else None


def _substituted(node: Node, changed: dict[Node, Node]) -> Node:
    if node not in changed:
        changed[node] = remake(node, *(_substituted(x, changed) for x in node.operands))
    return changed[node]


def unsort_rows(graph: Graph) -> Graph:
    """The graph with sorts behind what is computed row by row."""
    found: dict[Node, Sorted] = {}
    store = dict(graph.constants)

    def change(node: Node) -> Node:
        if is_order(node):
            places = constant(store, np.arange(node.type.size), f"{node.name}.places")
            found[node] = Sorted(places, 0, node)
            return node
        marks = {i: found[x] for i, x in enumerate(node.operands) if x in found}
        if _is_undone(node, marks):
            return marks[0].base
        if not marks or len(node.types) > 1 or len({mark.order for mark in marks.values()}) > 1:
            return node
        if node.op == "neg" and is_order(node.operands[0]):
            return node  # what an inverse is made of
        first = next(iter(marks.values()))
        operands = [marks[i].base if i in marks else x for i, x in enumerate(node.operands)]
        if _is_summed(node, marks):
            return remake(node, *operands)
        axis = row_axis(node, {i: mark.axis for i, mark in marks.items()})
        if axis is None:
            return node
        base = _computed(remake(node, *operands), store)
        moved = make(
            "take", base, first.order, name=f"{node.name}.sorted", source=node.source, axis=axis
        )
        found[moved] = Sorted(base, axis, first.order)
        return moved

    changed = rebuild(graph, change, store)
    used = {str(node["digest"]) for node in changed.nodes if node.op == "constant"}
    kept = {digest: array for digest, array in store.items() if digest in used}
    return Graph(changed.name, changed.inputs, changed.outputs, kept, changed.notes)


def _is_fixed(node: Node) -> bool:
    return all(x.operands or x.op == "constant" for x in topological_order([node]))


def _computed(node: Node, store: dict[str, np.ndarray]) -> Node:
    """Places that are computed from constants alone, as a constant."""
    if node.type.is_float or not _is_fixed(node):
        return node
    (value,) = interpret(Graph("places", (), (node,), store))
    return constant(store, value, f"{node.name}.places", node.type)


def _is_undone(node: Node, marks: Mapping[int, Sorted]) -> bool:
    """Whether ``node`` takes sorted rows in the order that puts them back."""
    if node.op != "take" or 0 not in marks:
        return False
    index, mark = node.operands[1], marks[0]
    if not is_order(index) or node["axis"] % node.operands[0].type.rank != mark.axis:
        return False
    backwards = index.operands[0].operands[0]
    return backwards.op == "neg" and backwards.operands[0] == mark.order


def _is_summed(node: Node, marks: Mapping[int, Sorted]) -> bool:
    """Whether ``node`` sums over sorted rows, of all its operands that have some."""
    x = node.operands[0]
    if node.op == "sum":
        return marks[0].axis in {axis % x.type.rank for axis in node["axes"]}
    if node.op != "matmul" or len(marks) < 2:
        return False
    inner = (x.type.rank - 1, node.operands[1].type.rank - 2)
    return (marks[0].axis, marks[1].axis) == inner
