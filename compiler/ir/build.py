"""Making nodes: the only way in, so that every node in a graph has a checked type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import InvalidGraph, unknown_name
from .graph import Attribute, Node
from .ops import OPS, STRUCTURAL
from .types import Type


def make(
    op: str,
    *operands: Node,
    name: str = "",
    source: str = "",
    notes: Mapping[str, Attribute] | None = None,
    **attributes: Any,
) -> Node:
    """The node ``op(*operands)`` with attributes completed and its type inferred.

    Raises InvalidGraph, naming the op and its source line, if operands or attributes do not fit.
    """
    types, full = infer(op, operands, attributes, source or name)
    return Node(op, operands, types, full, name or op, source, notes or {})


def infer(
    op: str, operands: tuple[Node, ...], attributes: Mapping[str, Any], where: str = ""
) -> tuple[tuple[Type, ...], dict[str, Attribute]]:
    """The result types and the complete attributes of ``op`` on ``operands``."""
    if op not in OPS:
        raise unknown_name("op", op, OPS)
    entry = OPS[op]
    try:
        entry.check_count(len(operands))
        full = entry.complete({key: _frozen(value) for key, value in attributes.items()})
        result = entry.result(*(operand.type for operand in operands), **full)
    except ValueError as error:
        raise InvalidGraph(f"{op}: {error}", where=where or None) from error
    return (result if isinstance(result, tuple) else (result,)), full


def input_node(name: str, type: Type) -> Node:
    return Node("input", (), (type,), {}, name)


def result(node: Node, index: int, name: str = "") -> Node:
    """Result number ``index`` of a node that has several."""
    if not 0 <= index < len(node.types):
        raise InvalidGraph(f"'{node.name}' ({node.op}) has no result {index}", where=node.source)
    name = name or f"{node.name}.{index}"
    return Node("result", (node,), (node.types[index],), {"index": index}, name, node.source)


def remake(node: Node, *operands: Node, **attributes: Any) -> Node:
    """``node`` with other operands or attributes: same name and source, types inferred."""
    if node.op in STRUCTURAL:
        return result(operands[0], node["index"], node.name) if node.op == "result" else node
    types, full = infer(node.op, operands, {**node.attributes, **attributes}, node.source)
    return replace(node, operands=operands, types=types, attributes=full)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
