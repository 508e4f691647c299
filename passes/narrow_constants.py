"""Hold constants in the precision of the computation that reads them.

    %b = constant : f64[8, 64, 4, 4]   %y = rotate(%x, %b, %e) : f32[65, 256]
    ->
    %b = constant : f32[8, 64, 4, 4]   %y = rotate(%x, %b, %e) : f32[65, 256]

Recognition and the merging of rotations work in float64, so that nothing is rounded twice. Every op
that takes such a constant rounds it to the precision of its result, so rounding it here is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..compiler.ir import Graph, Node
from .base import Walk, rewrite

# Ops whose meaning rounds a constant operand to the precision of the rows.
_ROUNDS = frozenset(
    {
        "rotate",
        "ternary_matmul",
        "dequantize",
        "butterfly_experts",
        "butterfly_layer",
        "butterfly_deep_layer",
    }
)


def narrow(node: Node, walk: Walk) -> Node | None:
    """``node`` reading float32 copies of its float64 constants."""
    if node.op not in _ROUNDS or node.type.dtype != "f32":
        return None
    operands = tuple(
        walk.constant(walk.value(operand).astype(np.float32), operand.name)
        if operand.op == "constant" and operand.type.dtype == "f64"
        else operand
        for operand in node.operands
    )
    same = all(a is b for a, b in zip(operands, node.operands, strict=True))
    return None if same else replace(node, operands=operands)


@dataclass(frozen=True)
class NarrowConstants:
    name = "narrow_constants"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        return rewrite(graph, narrow)
