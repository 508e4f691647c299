"""Integer forms of what only moves or chooses elements: codes stay what they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..compiler.ir import Node, make, result
from .quantize_codes import Quantizer, scaled


def concat(q: Quantizer, node: Node) -> Node:
    dtype = q.dtype(node)
    scale = q.scale(node, dtype)
    parts = [q.codes(operand, dtype, scale) for operand in node.operands]
    made = make("concat", *parts, name=node.name, source=node.source, axis=node["axis"])
    return scaled(made, scale)


def moved(q: Quantizer, node: Node) -> Node:
    x, *rest = node.operands
    codes = q.own(x)
    attributes: dict[str, Any] = dict(node.attributes)
    others = (q.done.get(each, each) for each in rest)
    made = make(node.op, codes, *others, name=node.name, source=node.source, **attributes)
    return scaled(made, q.scale_of(codes))


def top_k(q: Quantizer, node: Node) -> Node:
    codes = q.own(node.operands[0])
    made = make("top_k", codes, name=node.name, source=node.source, k=node["k"])
    values, numbers = made.types
    return replace(made, types=(replace(values, scale=codes.type.scale), numbers))


def some(q: Quantizer, node: Node) -> Node:
    return result(q.done[node.operands[0]], int(node["index"]), node.name)
