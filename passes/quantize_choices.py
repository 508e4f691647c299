"""Integer forms of what compares and chooses: its operands are codes of one scale."""

from __future__ import annotations

from ..compiler.ir import Node, make
from .quantize_codes import Quantizer, scaled


def alike(q: Quantizer, node: Node) -> Node:
    """The larger, the smaller, or one of two by a condition: of codes as of what they stand for."""
    dtype = q.dtype(node)
    scale = q.scale(node, dtype)
    operands = [
        q.codes(operand, dtype, scale) if operand.type.is_float else q.done.get(operand, operand)
        for operand in node.operands
    ]
    return scaled(make(node.op, *operands, name=node.name, source=node.source), scale)


def compared(q: Quantizer, node: Node) -> Node:
    """Which is larger: of 16 bits, whose scale both have."""
    scale = q.scale(node.operands[0], "i16")
    operands = [q.codes(operand, "i16", scale) for operand in node.operands]
    return make(node.op, *operands, name=node.name, source=node.source)


def argmax(q: Quantizer, node: Node) -> Node:
    """The first place of the largest code."""
    codes, places = q.own(node.operands[0]), {"axis": node["axis"], "keep": node["keep"]}
    return make("argmax", codes, name=node.name, source=node.source, **places)
