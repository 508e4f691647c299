"""Sums that are written in another way than a Butterfly layer's: the same values, other terms.

x P - x M, with P - M ternary  ->  x (P - M)
a + g (b - a)                  ->  (1 - g) a + g b
[a, b] [W; W]                  ->  (a + b) W
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir.build import make
from ..ir.graph import Graph, Node, constant, rebuild
from .recognise_probe import Probe
from .recognise_ternary import as_ternary, is_selection, product_of

Array = np.ndarray


def rewritten(graph: Graph) -> Graph | None:
    """The graph with all such sums in the form of a layer's; None where there are none."""
    writer = _Writer(dict(graph.constants))
    new = rebuild(graph, writer.change, writer.probe.constants)
    return new if writer.changed else None


@dataclass(frozen=True)
class _Term:
    """Rows of ``x`` times w.T, which ``node`` computes."""

    node: Node
    x: Node
    w: Array


class _Writer:
    """Rewrites one graph."""

    def __init__(self, store: dict[str, Array]) -> None:
        self.probe = Probe(store)
        self.changed = False

    def change(self, node: Node) -> Node:
        new = None
        if node.op in ("add", "sub"):
            new = self._one_product(node)
        if new is None and node.op == "add":
            new = self._two_terms(node)
        if node.op in ("linear", "matmul") and node.operands[0].op == "concat":
            new = self._one_of_equal(node)
        self.changed |= new is not None
        return node if new is None else new

    def _one_product(self, node: Node) -> Node | None:
        """The sum or difference of two products of the same rows as one with a ternary matrix."""
        left, right = (self._term(operand) for operand in node.operands)
        if left is None or right is None or left.x is not right.x or left.w.shape != right.w.shape:
            return None
        w = left.w - right.w if node.op == "sub" else left.w + right.w
        if as_ternary(w) is None or is_selection(w):
            return None
        matrix = constant(self.probe.constants, w.astype(left.w.dtype), f"{node.name}.w")
        product = make("linear", left.x, matrix, name=f"{node.name}.product", source=node.source)
        return make("reshape", product, name=node.name, source=node.source, shape=node.type.shape)

    def _term(self, node: Node) -> _Term | None:
        """``node`` as rows times a constant matrix, of which it may show some columns only."""
        columns: slice | None = None
        if node.op == "slice" and node["axis"] % node.type.rank == node.type.rank - 1:
            columns = slice(node["start"], node["stop"], node["step"])
            node = node.operands[0]
        product = product_of(self.probe, node) if node.op in ("linear", "matmul") else None
        if product is None or product.bias is not None or not _is_of_rows(product.node, product.x):
            return None
        return _Term(node, product.x, product.w if columns is None else product.w[columns])

    def _two_terms(self, node: Node) -> Node | None:
        """a + g (b - a) as (1 - g) a + g b, where g is one number for each row."""
        for a, weighed in (node.operands, node.operands[::-1]):
            factors = weighed.operands if weighed.op == "mul" else ()
            for g, difference in (factors, factors[::-1]) if factors else ():
                apart = difference.op == "sub" and difference.operands[1] is a
                if apart and _is_factor_of_rows(g, a):
                    one = constant(self.probe.constants, np.ones((), g.type.storage), "one")
                    first = make("mul", make("sub", one, g, source=node.source), a)
                    second = make("mul", g, difference.operands[0])
                    return make("add", first, second, name=node.name, source=node.source)
        return None

    def _one_of_equal(self, node: Node) -> Node | None:
        """Rows side by side times a matrix that stands there as often, as their sum times it."""
        rows, *bias = node.operands[0], *node.operands[2:]
        product = product_of(self.probe, node)
        beside = rows["axis"] % rows.type.rank == rows.type.rank - 1
        if product is None or not beside or not _is_of_rows(node, rows):
            return None
        parts = rows.operands
        alike = product.x is rows and len({part.type for part in parts}) == 1
        matrices = np.split(product.w, len(parts), axis=1) if alike else []
        if not matrices or any(not np.array_equal(w, matrices[0]) for w in matrices):
            return None
        total = parts[0]
        for part in parts[1:]:
            total = make("add", total, part, name=f"{node.name}.sum", source=node.source)
        held = np.ascontiguousarray(matrices[0].astype(rows.type.storage))
        w = constant(self.probe.constants, held, f"{node.name}.w")
        return make("linear", total, w, *bias, name=node.name, source=node.source)


def _is_of_rows(node: Node, x: Node) -> bool:
    """Whether the rows lie along the last axis, in the product as in what it is made of."""
    return node.operands[0] is x and node.type.shape[:-1] == x.type.shape[:-1]


def _is_factor_of_rows(g: Node, rows: Node) -> bool:
    """Whether ``g`` is computed, and one number for each of ``rows``."""
    return g.op != "constant" and g.type.shape[-1:] == (1,) and rows.type.shape[-1] > 1
