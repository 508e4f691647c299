"""Lay the channels of a group into one lane of vectors that follow one another.

    %y = rotate(%x, %blocks, %e) {lanes = 1}       blocks f32[E, 16, 4, 4]
    ->
    %1 = shuffle(%x, %spread)
    %2 = rotate(%1, %blocks, %e) {lanes = 8}
    %y = shuffle(%2, %gathered)

A vector unit then multiplies whole vectors by coefficients, and moves nothing inside a vector. The
shuffles fold into the matrices around the rotation. A rotation whose groups do not fill the lanes
stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..compiler.errors import UsageError
from ..compiler.ir import Graph, Node, make, remake
from .base import Walk, walk_once
from .orders import Order, inverse, shuffled


def spread_order(groups: int, b: int, lanes: int) -> Order:
    """The neighbouring channel that each channel of the spread form holds."""
    spread = np.arange(groups * b, dtype=np.int32).reshape(groups // lanes, lanes, b)
    return spread.swapaxes(1, 2).ravel()


def spread(lanes: int, node: Node, walk: Walk) -> Node | None:
    """rotate as shuffle . rotate{lanes} . shuffle."""
    if node.op != "rotate" or node["lanes"] != 1:
        return None
    x, blocks, experts = node.operands
    _, groups, b, _ = blocks.type.shape
    if groups % lanes or b == 1:
        return None
    order = spread_order(groups, b, lanes)
    moved = remake(node, shuffled(x, order, walk, node), blocks, experts, lanes=lanes)
    back = walk.constant(inverse(order, order.size), f"{node.name}.order")
    return make("shuffle", moved, back, name=f"{node.name}.shuffle", source=node.source)


@dataclass(frozen=True)
class SpreadRotations:
    """Every rotation that it can, over ``lanes``: the floats that a vector register holds."""

    lanes: int = 1

    name = "spread_rotations"
    exact = True

    def __post_init__(self) -> None:
        if self.lanes < 1:
            raise UsageError(f"lanes = {self.lanes}", help="give the lanes of a vector register")

    def __call__(self, graph: Graph) -> Graph:
        def spread_over_lanes(node: Node, walk: Walk) -> Node | None:
            return spread(self.lanes, node, walk)

        spread_graph = walk_once(graph, spread_over_lanes) if self.lanes > 1 else None
        return graph if spread_graph is None else spread_graph
