"""What a graph would be with dense weights of fewer digits: its sizes, not its results.

    %y = quantized_linear(%x, %w, ..) {planes = 5} : i8[T, N] @ {kernel = "integer_products"}
    ->
    %y = quantized_linear(%x, %w.3, ..) {planes = 3} : i8[T, N]

Codes become as many levels coarser as they have to; multipliers stay, so sums mean something else.
Routers keep their digits, as in `quantize`. Kernels are to be chosen anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..compiler.ir import Graph, Node, constant, rebuild
from ..compiler.ir.interpret import constant_value
from ..kernels.integer_numbers import largest_of
from .base import pruned
from .quantize_weights import DENSE, deciding


def without_kernels(graph: Graph) -> Graph:
    """``graph`` as it was before kernels were chosen: constants unpacked, no notes."""
    store: dict[str, np.ndarray] = {}

    def plain(node: Node) -> Node:
        if node.op != "constant":
            return replace(node, notes={})
        type = replace(node.type, layout=None)
        unpacked = constant(store, constant_value(graph.constants, node), node.name, type)
        return replace(unpacked, source=node.source)

    return replace(rebuild(graph, plain, store), notes={})


@dataclass(frozen=True)
class FewerDigits:
    """At most ``planes`` digits."""

    planes: int

    name = "fewer_digits"
    exact = False

    def __call__(self, graph: Graph) -> Graph:
        graph = without_kernels(graph)
        kept = {node.name for node in deciding(graph)}
        store = dict(graph.constants)

        def coarser(node: Node) -> Node:
            if node.op not in DENSE or node.name in kept or node["planes"] <= self.planes:
                return node
            x, w, *others = node.operands
            share = largest_of(self.planes) / largest_of(node["planes"])
            codes = np.rint(graph.value(w) * share).astype(np.int8)
            held = constant(store, codes, f"{w.name}.{self.planes}", w.type)
            attributes = {**node.attributes, "planes": self.planes}
            return replace(node, operands=(x, held, *others), attributes=attributes)

        return pruned(rebuild(graph, coarser, store))
