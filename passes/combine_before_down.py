"""Sum the experts before a linear map that they share, not after: one row a token in place of k.

    %1 = linear(%v, %w, %b) : f32[T, k, d]         %1 = combine(%v, %gates) : f32[T, F]
    %y = combine(%1, %gates) : f32[T, d]       ->  %2 = linear(%1, %w) : f32[T, d]
                                                   %3 = sum(%gates) : f32[T, 1]
                                                   %4 = mul(%3, %b)
                                                   %y = add(%2, %4)

sum_i g_i (W v_i + b) = W (sum_i g_i v_i) + b sum_i g_i. So for W_down, for a fixed order of
channels, for a factor or a summand a channel. What differs between experts, or is no linear map,
stays in front of the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..compiler.ir import Graph, Node, make, remake
from .base import PRODUCTS, Walk, is_constant, rewrite

SHARED = PRODUCTS | {"shuffle"}  # linear in the first operand, the others fixed


def combined(node: Node, rows: Node) -> Node:
    """The weighted sum ``node``, of ``rows`` instead."""
    return replace(remake(node, rows, node.operands[1]), name=f"{rows.name}.combined")


def constant_of(value: Node) -> tuple[Node, Node] | None:
    """(rows, constant) of an op of rows [T, k, n] and a constant that is one for all rows."""
    for rows, fixed in (value.operands, value.operands[::-1]):
        if is_constant(fixed) and fixed.type.rank <= 1 and rows.type == value.type:
            return rows, fixed
    return None


def times_gates(node: Node, summand: Node) -> Node:
    """``summand``, of every expert, in the weighted sum ``node``: times the sum of the gates."""
    gates, name = node.operands[1], node.name
    total = make("sum", gates, axes=(-1,), keep=True, name=f"{name}.gates", source=node.source)
    return make("mul", total, summand, name=f"{name}.bias", source=node.source)


def shared_after(node: Node, walk: Walk) -> Node | None:
    """combine . shared linear map -> shared linear map . combine, and its bias once a token."""
    value = node.operands[0] if node.op == "combine" else node
    if value is node or value.op not in SHARED or not walk.read_once(value):
        return None
    if not all(is_constant(operand) for operand in value.operands[1:]):
        return None
    if value.attributes.get("activation", "none") != "none":
        return None
    rows, *fixed = value.operands
    bias = fixed.pop() if value.op == "linear" and len(fixed) == 2 else None
    moved = remake(value, combined(node, rows), *fixed)
    if bias is None:
        return replace(moved, name=node.name)
    return make("add", moved, times_gates(node, bias), name=node.name, source=node.source)


def elementwise_after(node: Node, walk: Walk) -> Node | None:
    """combine of rows times, or plus, one constant -> the sum of the rows times, or plus, it."""
    value = node.operands[0] if node.op == "combine" else node
    if value.op not in ("mul", "add") or value is node or not walk.read_once(value):
        return None
    found = constant_of(value)
    if found is None:
        return None
    rows, fixed = found
    total = combined(node, rows)
    if value.op == "mul":
        return make("mul", total, fixed, name=node.name, source=value.source)
    return make("add", total, times_gates(node, fixed), name=node.name, source=node.source)


@dataclass(frozen=True)
class CombineBeforeDown:
    """Every map that the experts share, as far behind their sum as it goes."""

    name = "combine_before_down"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        return rewrite(graph, shared_after, elementwise_after)
