"""Products of matrices kept apart: x times (A B C) as ((x A) B) C, so that each factor is seen.

Models that build a whole expert as one matrix, B(phi) W_hat B(theta)^T, leave nothing ternary once
their constants are folded. The factors are still in the graph as it was captured.

matmul(x, stack(matmul(a, b), matmul(c, d)))  ->  matmul(matmul(x, stack(a, c)), stack(b, d))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..ir.build import make
from ..ir.graph import Graph, Node, constant, rebuild

Factors = tuple[Node, ...]


def unfolded(graph: Graph) -> Graph | None:
    """The graph whose rows meet one factor of a matrix after the other; None if nothing changes."""
    writer = _Writer(dict(graph.constants))
    new = rebuild(replace_constants(graph, writer.store), writer.change)
    return replace_constants(new, writer.store) if writer.changed else None


def replace_constants(graph: Graph, store: dict[str, np.ndarray]) -> Graph:
    return Graph(graph.name, graph.inputs, graph.outputs, store, graph.notes)


class _Writer:
    """Rewrites one graph; knows of each matrix, constant or chosen by a number, its factors."""

    def __init__(self, store: dict[str, np.ndarray]) -> None:
        self.store = store
        self.factors: dict[Node, Factors] = {}
        # The factors of matrices [E, a, b] that a node puts together in another way:
        self.stacks: dict[Node, Factors] = {}  # [E a, b], one under the other
        self.columns: dict[Node, Factors] = {}  # [a, E b], side by side
        self.sideways: dict[Node, Factors] = {}  # [a, E, b]
        self._swapped: dict[Node, Node] = {}
        self.changed = False

    def change(self, node: Node) -> Node:
        """``node`` as it is in the new graph, its factors noted if it is a matrix."""
        if self._is_matrix(node):
            self.factors[node] = self._factors(node) or (node,)
            self._note_stack(node)
            return node
        if node.op == "linear" and node["activation"] == "none" and len(node.operands) == 2:
            x, w = node.operands
            if w in self.stacks and x not in self.factors:
                return self._stacked(node, x, self._turned(self.stacks[w]))
            if len(self.factors.get(w, ())) > 1 and x not in self.factors:
                return self._product(node, (x, *self._turned(self.factors[w])), from_left=True)
        if node.op == "matmul":
            a, b = node.operands
            if b in self.columns and a not in self.factors:
                return self._stacked(node, a, self.columns[b])
            if a in self.stacks and b not in self.factors and b.type.rank == a.type.rank:
                shape = (*b.type.shape[:-2], 1, *b.type.shape[-2:])
                columns = make("reshape", b, shape=shape)
                each = self._chain(node, (*self.stacks[a], columns), from_left=False)
                return _shaped(each, node)  # [..., E, a, n]
            if len(self.factors.get(b, ())) > 1 and a not in self.factors:
                return self._product(node, (a, *self.factors[b]), from_left=True)
            if len(self.factors.get(a, ())) > 1 and b not in self.factors:
                return self._product(node, (*self.factors[a], b), from_left=False)
        return node

    def _note_stack(self, node: Node) -> None:
        """Notes how ``node`` puts matrices together, if it does."""
        x = node.operands[0] if node.operands else node
        if node.op == "transpose":
            order = tuple(node["order"])
            if order == (1, 0) and x in self.stacks:
                self.columns[node] = self._turned(self.stacks[x])
            elif order == (1, 0) and x in self.columns:
                self.stacks[node] = self._turned(self.columns[x])
            elif order == (1, 0, 2):
                self.sideways[node] = self._whole(x)
        if node.op == "reshape":
            self._note_merged(node, x)
        if node.op == "matmul" and node.type.rank == 2:
            left, right = node.operands
            if right in self.columns and left in self.factors:
                self.columns[node] = self.factors[left] + self.columns[right]
            elif left in self.stacks and right in self.factors:
                self.stacks[node] = self.stacks[left] + self.factors[right]

    def _note_merged(self, node: Node, x: Node) -> None:
        """Notes the matrices [E, a, b] whose axes the reshape of ``x`` to ``node`` merges."""
        known = self.factors.get(x, ())
        some = any(not is_shared(factor) for factor in known)
        if some and len(known) > 1 and x.type.rank > 2:
            *lead, a, b = x.type.shape
            count = int(np.prod(lead))
            if node.type.shape == (count * a, b):
                self.stacks[node] = self._on_batch(x, (count,))
            elif node.type.shape == (*lead[:-1], lead[-1] * a, b):
                self.stacks[node] = self._whole(x)
        if x in self.sideways and node.type.shape == (
            x.type.shape[0],
            x.type.size // x.type.shape[0],
        ):
            self.columns[node] = self.sideways[x]
        beside = self.columns.get(x, ())
        if beside and node.type.shape == (x.type.shape[0], *_counts(beside)):
            self.sideways[node] = beside

    def _stacked(self, node: Node, x: Node, factors: Factors) -> Node:
        """x [..., b] times each of E products, side by side: [..., E a]."""
        rows = make("reshape", x, shape=(1, x.type.size // x.type.shape[-1], x.type.shape[-1]))
        each = self._chain(node, (rows, *factors), from_left=True)  # [E, n, a]
        moved = make("transpose", each, order=(1, 0, 2))
        return _shaped(moved, node)

    def _is_matrix(self, node: Node) -> bool:
        """Whether only constants, and numbers by which rows of them are taken, make up ``node``."""
        if len(node.types) > 1 or not node.type.is_float:
            return False
        floats = [x for x in node.operands if len(x.types) == 1 and x.type.is_float]
        whole = len(floats) == len(node.operands) or node.op == "take"
        return node.op == "constant" or (
            bool(floats) and whole and all(x in self.factors for x in floats)
        )

    def _factors(self, node: Node) -> Factors | None:
        """The matrices whose product ``node`` is, in order; None where it is no product."""
        if node.op == "matmul" and all(x.type.rank > 1 for x in node.operands):
            return self.factors[node.operands[0]] + self.factors[node.operands[1]]
        if node.op == "linear" and len(node.operands) == 2 and node["activation"] == "none":
            return self.factors[node.operands[0]] + self._turned(self.factors[node.operands[1]])
        first = node.operands[0] if node.operands else node
        if node.op == "transpose" and first in self.sideways and tuple(node["order"]) == (1, 0, 2):
            return self.sideways[first]
        under = self.stacks.get(first, ()) if node.op == "reshape" and node.type.rank == 3 else ()
        if under and (node.type.shape[0], node.type.shape[2]) == _counts(under):
            return under
        known = self.factors.get(first, ()) if node.operands else ()
        if len(known) < 2 and node.op != "slice":
            return None
        if node.op in RULES and node.type.rank > 1:
            return RULES[node.op](self, node)
        return None

    def _product(self, node: Node, factors: Factors, from_left: bool) -> Node:
        """The product of ``factors`` in the shape of ``node``, taken from the side of the rows."""
        return _shaped(self._chain(node, factors, from_left), node)

    def _chain(self, node: Node, factors: Factors, from_left: bool) -> Node:
        self.changed = True
        row, rest = (factors[0], factors[1:]) if from_left else (factors[-1], factors[-2::-1])
        for factor in rest:
            pair = (row, factor) if from_left else (factor, row)
            row = make("matmul", *pair, name=f"{node.name}.factor", source=node.source)
        return row

    # --- what ops on a product of matrices do to its factors ---

    def transpose(self, node: Node) -> Factors | None:
        order = tuple(node["order"])
        last = node.type.rank - 2
        known = self.factors[node.operands[0]]
        if order[last:] == (last, last + 1):
            return tuple(
                factor if is_shared(factor) else make("transpose", factor, order=order)
                for factor in self._whole(node.operands[0])
            )
        if order[:last] == tuple(range(last)):
            return self._turned(known)
        return None

    def reshape(self, node: Node) -> Factors | None:
        if node.operands[0].type.shape[-2:] != node.type.shape[-2:]:
            return None
        return self._on_batch(node.operands[0], node.type.shape[:-2])

    def broadcast(self, node: Node) -> Factors | None:
        if node.operands[0].type.shape[-2:] != node.type.shape[-2:]:
            return None
        return self.factors[node.operands[0]]

    def take(self, node: Node) -> Factors | None:
        x, numbers = node.operands
        if node["axis"] >= x.type.rank - 2:
            if numbers.op != "constant" or numbers.type.rank != 1:
                return None
            return self._picked(node, self.store[str(numbers["digest"])])
        return tuple(
            factor if is_shared(factor) else make("take", factor, numbers, axis=node["axis"])
            for factor in self._whole(x)
        )

    def slice(self, node: Node) -> Factors | None:
        cut: dict[str, Any] = dict(node.attributes)
        x, axis = node.operands[0], node["axis"]
        if axis < x.type.rank - 2:
            return tuple(
                factor if is_shared(factor) else make("slice", factor, **cut)
                for factor in self._whole(x)
            )
        places = np.arange(x.type.shape[axis])
        return self._picked(node, places[node["start"] : node["stop"] : node["step"]])

    def _picked(self, node: Node, places: np.ndarray) -> Factors:
        """The factors of ``node``, which has the rows or columns of a product at those places."""
        x, axis = node.operands[0], node["axis"]
        columns = axis == x.type.rank - 1
        picked = np.eye(x.type.shape[axis])[places]
        matrix = (picked.T if columns else picked).astype(x.type.storage)
        pick = constant(self.store, np.ascontiguousarray(matrix), f"{node.name}.pick")
        return (*self.factors[x], pick) if columns else (pick, *self.factors[x])

    def concat(self, node: Node) -> Factors | None:
        each = [self._whole(x) for x in node.operands]
        alike = {tuple(f.type.shape[-2:] for f in factors) for factors in each}
        if node["axis"] >= node.type.rank - 2 or len(alike) > 1:
            return None
        found = []
        for together in zip(*each, strict=True):
            if is_shared(together[0]) and all(factor is together[0] for factor in together):
                found.append(together[0])
                continue
            parts = [
                self._broadcast(factor, x.type.shape[:-2])
                for factor, x in zip(together, node.operands, strict=True)
            ]
            found.append(make("concat", *parts, axis=node["axis"]))
        return tuple(found)

    def _on_batch(self, x: Node, lead: tuple[int, ...]) -> Factors:
        """The factors of ``x`` where its leading axes are put in the shape ``lead``."""
        return tuple(
            factor
            if is_shared(factor)
            else make("reshape", factor, shape=(*lead, *factor.type.shape[-2:]))
            for factor in self._whole(x)
        )

    def _whole(self, node: Node) -> Factors:
        """The factors of ``node``: shared by all that its leading axes count, or one for each."""
        lead = node.type.shape[:-2]
        return tuple(
            factor if is_shared(factor) else self._broadcast(factor, lead)
            for factor in self.factors[node]
        )

    def _turned(self, factors: Factors) -> Factors:
        """The factors of the transposed product; what was one factor stays one."""
        return tuple(self._swap(factor) for factor in reversed(factors))

    def _swap(self, x: Node) -> Node:
        if x not in self._swapped:
            rank = x.type.rank
            order = (*range(rank - 2), rank - 1, rank - 2)
            self._swapped[x] = make("transpose", x, order=order)
        return self._swapped[x]

    def _broadcast(self, factor: Node, lead: tuple[int, ...]) -> Node:
        shape = (*lead, *factor.type.shape[-2:])
        return factor if factor.type.shape == shape else make("broadcast", factor, shape=shape)


RULES: dict[str, Callable[[_Writer, Node], Factors | None]] = {
    "transpose": _Writer.transpose,
    "reshape": _Writer.reshape,
    "broadcast": _Writer.broadcast,
    "take": _Writer.take,
    "slice": _Writer.slice,
    "concat": _Writer.concat,
}


def _counts(factors: Factors) -> tuple[int, int]:
    """How many matrices [E, a, b] the factors make, and b."""
    count = next(factor.type.shape[0] for factor in factors if not is_shared(factor))
    return count, factors[-1].type.shape[-1]


def is_shared(factor: Node) -> bool:
    """Whether a factor is one matrix for all that the leading axes of the product count."""
    return factor.type.rank == 2


def _shaped(made: Node, node: Node) -> Node:
    """``made`` in the shape of ``node``, whose place it takes."""
    shape = node.type.shape
    if made.type.shape == shape:
        return made
    op = "reshape" if made.type.size == node.type.size else "broadcast"
    return make(op, made, name=node.name, source=node.source, shape=shape)
