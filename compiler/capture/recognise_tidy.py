"""One node for what is the same, and no detours: the same values, moved less.

op(x), op(x)                           ->  op(x)
slice(concat(a, b, c)) of parts a, b   ->  concat(a, b)
concat(concat(a, b), c)                ->  concat(a, b, c)
take(rows that are all alike, n)       ->  one row, broadcast
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir.build import make
from ..ir.graph import Graph, Node, constant, rebuild
from .recognise_algebra import rewritten
from .recognise_probe import fold_constants


def simpler(graph: Graph) -> Graph | None:
    """The tidied graph, with its sums in the terms of a layer; None where it is no other."""
    folded = fold_constants(graph)
    tidy = tidied(folded)
    return rewritten(tidy) or (tidy if len(tidy.nodes) < len(folded.nodes) else None)


def tidied(graph: Graph) -> Graph:
    """The graph without repetitions, and without joints that are cut again."""
    first: dict[Any, Node] = {}
    store = dict(graph.constants)

    def change(node: Node) -> Node:
        if node.op in ("constant", "input") or node.notes:
            return node
        node = _without_choice(node, store) or _without_detour(node)
        key = node.op, node.operands, node.types, tuple(sorted(node.attributes.items()))
        return first.setdefault(key, node)

    return rebuild(graph, change, store)


def _without_choice(node: Node, store: dict[str, np.ndarray]) -> Node | None:
    """One of the rows of a constant for all, where a number chooses among rows that are alike."""
    if node.op != "take" or node["axis"] != 0 or node.operands[0].op != "constant":
        return None
    rows = store[str(node.operands[0]["digest"])]
    if len(rows) < 2 or not (rows == rows[0]).all():
        return None
    row = constant(store, rows[0], f"{node.operands[0].name}.row")
    return make("broadcast", row, name=node.name, source=node.source, shape=node.type.shape)


def _without_detour(node: Node) -> Node:
    x = node.operands[0] if node.operands else node
    if node.op == "slice" and x.op == "concat" and node["step"] == 1 and _along(node) == _along(x):
        return _part(node, x)
    if node.op == "concat":
        parts: list[Node] = []
        for part in node.operands:
            inner = part.op == "concat" and _along(part) == _along(node) and not part.notes
            parts += part.operands if inner else [part]
        if len(parts) > len(node.operands):
            return make("concat", *parts, name=node.name, source=node.source, axis=_along(node))
    return node


def _along(node: Node) -> int:
    return int(node["axis"]) % node.operands[0].type.rank


def _part(node: Node, whole: Node) -> Node:
    """The slice ``node`` of a joint of whole parts, or of a piece of one of them."""
    axis, start, stop = _along(node), int(node["start"]), int(node["stop"])
    kept: list[Node] = []
    at = 0
    for part in whole.operands:
        size = part.type.shape[axis]
        low, high = max(start, at), min(stop, at + size)
        if (low, high) == (start, stop) and size > stop - start:
            cut: dict[str, Any] = {"axis": axis, "start": start - at, "stop": stop - at}
            return make("slice", part, name=node.name, source=node.source, **cut)
        if low < high:
            if high - low < size:
                return node
            kept.append(part)
        at += size
    if len(kept) < 2:
        return kept[0] if kept else node
    return make("concat", *kept, name=node.name, source=node.source, axis=axis)
