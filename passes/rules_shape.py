"""Rules for ops that move elements: those that move nothing go, those in a row become one."""

from __future__ import annotations

from ..compiler.ir import Node, make, remake
from ..compiler.ir.ops.table import broadcast_shapes
from .base import ELEMENTWISE, Walk


def drop_identity(node: Node, walk: Walk) -> Node | None:
    """A reshape, transpose, broadcast, cast, slice or concat that changes nothing."""
    x = node.operands[0] if node.operands else node
    if node.op in ("reshape", "broadcast", "cast", "slice"):
        return x if x.types == node.types else None
    if node.op == "transpose":
        return x if node["order"] == tuple(range(node.type.rank)) else None
    if node.op == "concat":
        return x if len(node.operands) == 1 else None
    return None


def compose_reshapes(node: Node, walk: Walk) -> Node | None:
    """reshape . reshape -> reshape."""
    if node.op != "reshape" or node.operands[0].op != "reshape":
        return None
    return remake(node, node.operands[0].operands[0])


def compose_transposes(node: Node, walk: Walk) -> Node | None:
    """transpose . transpose -> transpose."""
    if node.op != "transpose" or node.operands[0].op != "transpose":
        return None
    inner = node.operands[0]
    return remake(node, inner.operands[0], order=[inner["order"][axis] for axis in node["order"]])


def transpose_to_reshape(node: Node, walk: Walk) -> Node | None:
    """A transpose that moves only axes of size 1 -> reshape."""
    if node.op != "transpose":
        return None
    shape = node.operands[0].type.shape
    moved = [axis for axis in node["order"] if shape[axis] != 1]
    if moved != sorted(moved):
        return None
    shape = node.type.shape
    return make("reshape", node.operands[0], shape=shape, name=node.name, source=node.source)


def compose_broadcasts(node: Node, walk: Walk) -> Node | None:
    """broadcast . broadcast -> broadcast."""
    if node.op != "broadcast" or node.operands[0].op != "broadcast":
        return None
    return remake(node, node.operands[0].operands[0])


def broadcast_in_place(node: Node, walk: Walk) -> Node | None:
    """An elementwise op that would repeat its operand anyway needs no broadcast in front."""
    if node.op not in ELEMENTWISE:
        return None
    for i, operand in enumerate(node.operands):
        if operand.op != "broadcast":
            continue
        operands = (*node.operands[:i], operand.operands[0], *node.operands[i + 1 :])
        if broadcast_shapes(*(o.type.shape for o in operands)) == node.type.shape:
            return remake(node, *operands)
    return None


RULES = (
    drop_identity,
    compose_reshapes,
    compose_transposes,
    transpose_to_reshape,
    compose_broadcasts,
    broadcast_in_place,
)
