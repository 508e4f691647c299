"""The text form of the IR. It round-trips: ``parse_graph(str(g)) == g``.

    graph vit(%pixels: f32[1, 1, 8, 8]) {
      %w = constant {digest = "0f3a..."} : f32[64, 1]
      %h = linear(%x, %w) {activation = "none"} : f32[1, 64, 64]   # vit.py:88
      return %h
    }

Attributes stand in braces, notes (kernel, arena offset) after an ``@``, a source line after ``#``.
Constants are named by digest; their data stay beside the graph.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import InvalidGraph
from .build import infer
from .graph import Attribute, Graph, Node
from .ops import STRUCTURAL
from .types import Type

_HEAD = re.compile(r"graph (\S+)\((.*)\)(?: @ \{(.*)\})? \{")
_LINE = re.compile(
    r"%(?P<name>\S+) = (?P<op>\w+)(?:\((?P<operands>[^)]*)\))?"
    r"(?: \{(?P<attributes>.*?)\})? : (?P<types>[^#@]+?)"
    r"(?: @ \{(?P<notes>.*?)\})?(?:\s+# (?P<source>.*))?"
)


def print_graph(graph: Graph, mark: Node | None = None) -> str:
    """``graph`` as text; ``mark`` points at one node with a line of carets."""
    inputs = ", ".join(f"%{node.name}: {node.type}" for node in graph.inputs)
    notes = f" @ {_print_map(graph.notes)}" if graph.notes else ""
    lines = [f"graph {graph.name}({inputs}){notes} {{"]
    for node in graph.nodes:
        if node.op == "input":
            continue
        lines.append("  " + print_node(node))
        if node is mark:
            lines.append("  " + "^" * len(print_node(node).split(" : ")[0]))
    lines.append("  return " + ", ".join(f"%{node.name}" for node in graph.outputs))
    return "\n".join([*lines, "}"])


def print_node(node: Node) -> str:
    """One line: name, op, operands, attributes, types, notes, source."""
    operands = ", ".join(f"%{operand.name}" for operand in node.operands)
    text = f"%{node.name} = {node.op}" + (f"({operands})" if node.operands else "")
    if node.attributes:
        text += " " + _print_map(node.attributes)
    text += " : " + " x ".join(map(str, node.types))
    if node.notes:
        text += " @ " + _print_map(node.notes)
    return text + (f"   # {node.source}" if node.source else "")


def parse_graph(text: str, constants: Mapping[str, np.ndarray] | None = None) -> Graph:
    """The graph that prints as ``text``, over ``constants`` (empty: it can be read, not run).

    Raises InvalidGraph with the line number if the text is malformed, or if a printed type is not
    the one that the op's shape rule gives.
    """
    lines = _numbered(text)
    number, head = next(lines, (0, ""))
    match = _HEAD.fullmatch(head)
    if match is None:
        raise InvalidGraph(f"expected 'graph NAME(inputs) {{', got '{head}'", where=_at(number))
    name, inputs, notes = match.groups()
    nodes: dict[str, Node] = {}
    for part in re.findall(r"%(\S+): ([^%]+?)(?:, (?=%)|$)", inputs):
        nodes[part[0]] = Node("input", (), (_type(part[1], number),), {}, part[0])
    heads = tuple(nodes.values())
    for number, line in lines:
        if line.startswith("return "):
            outputs = tuple(_lookup(nodes, ref, number) for ref in line[7:].split(", "))
            _expect_end(lines)
            return Graph(name, heads, outputs, dict(constants or {}), _parse_map(notes, number))
        node = _parse_node(line, nodes, number)
        if node.name in nodes:
            raise InvalidGraph(f"%{node.name} is defined twice", where=_at(number))
        nodes[node.name] = node
    raise InvalidGraph("the graph has no 'return'", where=_at(number))


def _parse_node(line: str, nodes: Mapping[str, Node], number: int) -> Node:
    match = _LINE.fullmatch(line)
    if match is None:
        raise InvalidGraph(f"not an op: '{line}'", where=_at(number))
    refs = match["operands"].split(", ") if match["operands"] else []
    operands = tuple(_lookup(nodes, ref, number) for ref in refs)
    attributes = _parse_map(match["attributes"], number)
    types = tuple(_type(part, number) for part in match["types"].split(" x "))
    op = match["op"]
    if op not in STRUCTURAL:
        inferred, attributes = infer(op, operands, attributes, _at(number))
        plain = tuple(replace(type, layout=None, scale=None) for type in types)
        if inferred != plain:
            got = " x ".join(map(str, inferred))
            raise InvalidGraph(
                f"%{match['name']}: {op} gives {got}, the text says {match['types']}",
                where=_at(number),
            )
    notes = _parse_map(match["notes"], number)
    return Node(op, operands, types, attributes, match["name"], match["source"] or "", notes)


def _lookup(nodes: Mapping[str, Node], reference: str, number: int) -> Node:
    name = reference.strip().removeprefix("%")
    if name not in nodes:
        raise InvalidGraph(f"{reference.strip()} is used before it is defined", where=_at(number))
    return nodes[name]


def _type(text: str, number: int) -> Type:
    try:
        return Type.parse(text)
    except ValueError as error:
        raise InvalidGraph(str(error), where=_at(number)) from error


def _expect_end(lines: Iterator[tuple[int, str]]) -> None:
    rest = list(lines)
    if [line for _, line in rest] != ["}"]:
        number = rest[0][0] if rest else 0
        raise InvalidGraph("expected '}' after 'return' and nothing more", where=_at(number))


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def _at(number: int) -> str:
    return f"line {number} of the text"


def _print_map(mapping: Mapping[str, Attribute]) -> str:
    return "{" + ", ".join(f"{key} = {_print(value)}" for key, value in mapping.items()) + "}"


def _print(value: Attribute) -> str:
    # JSON, but for infinities and NaN, which it cannot say and a clip can hold
    if isinstance(value, tuple):
        return "[" + ", ".join(_print(item) for item in value) + "]"
    return json.dumps(value)


def _parse_map(text: str | None, number: int) -> dict[str, Attribute]:
    """``a = 1, b = [2, 3]`` as a dictionary; lists become tuples."""
    mapping: dict[str, Attribute] = {}
    decoder, rest = json.JSONDecoder(), (text or "").strip().strip("{}")
    while rest:
        key, equals, rest = rest.partition(" = ")
        try:
            if not equals:
                raise ValueError(f"expected 'name = value', got '{key}'")
            value, end = decoder.raw_decode(rest)
        except ValueError as error:
            raise InvalidGraph(f"bad attributes '{text}': {error}", where=_at(number)) from error
        mapping[key.strip(" ,")] = _tuples(value)
        rest = rest[end:]
    return mapping


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
