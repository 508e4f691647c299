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
from ..kernels.integer_numbers import largest_of
from .base import pruned
from .quantize_weights import DENSE, deciding
from .select_kernels import without_kernels


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
