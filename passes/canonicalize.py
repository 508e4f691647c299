"""One form for what can be written in several: the form that later passes look for.

    %1 = transpose(%w) {order = [1, 0]}            %y = linear(%x, %w, %b) {activation = "gelu"}
    %2 = matmul(%x, %1)
    %3 = add(%2, %b)                           ->
    %4 = reshape(%3)
    %y = gelu(%4)

What depends on constants only is computed, in its own dtype, as the model itself would; the same op
on the same operands is one node; moves that move nothing go (`rules_shape`); products by constants
become `linear` (`rules_product`); arithmetic that rounds nothing is simplified, softmax and layer
norm are recognised (`rules_arithmetic`). Applying it twice changes nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..compiler.ir import Graph, Node
from ..compiler.ir.interpret import interpret
from ..compiler.ir.ops import STRUCTURAL
from . import rules_arithmetic, rules_product, rules_shape
from .base import Walk, is_constant, merge_equal, rewrite

# A weight in another shape or precision goes on under its own name.
SAME_THING = frozenset({"reshape", "transpose", "broadcast", "cast"})


def fold_constant(limit: int, node: Node, walk: Walk) -> Node | None:
    """A node of constants only as a constant, if it is at most ``limit`` bytes larger than they."""
    maker = node.operands[0] if node.op == "result" else node
    if maker.op in STRUCTURAL or len(node.types) != 1:
        return None
    if not maker.operands or not all(is_constant(operand) for operand in maker.operands):
        return None
    if node.type.bytes > limit + sum(operand.type.bytes for operand in maker.operands):
        return None
    (value,) = interpret(Graph("constants", (), (node,), walk.constants))
    name = node.operands[0].name if node.op in SAME_THING else node.name
    return walk.constant(value, name, node.type)


@dataclass(frozen=True)
class Canonicalize:
    """``limit``: by how many bytes a computed constant may be larger than what it comes from."""

    limit: int = 1 << 16

    name = "canonicalize"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        def fold_constants(node: Node, walk: Walk) -> Node | None:
            return fold_constant(self.limit, node, walk)

        moves = *rules_shape.RULES, *rules_arithmetic.RULES, *rules_product.RULES
        return rewrite(graph, fold_constants, *moves, merge_equal)
