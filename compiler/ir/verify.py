"""The verifier: a graph that passes it keeps every rule that passes and emitters rely on."""

from __future__ import annotations

from dataclasses import replace

from ..errors import ButterflycError, InvalidGraph
from .build import infer
from .graph import Graph, Node
from .text import print_graph, print_node


def verify(graph: Graph, after: str = "") -> None:
    """Raises InvalidGraph, with the graph shown and the bad op marked, if a rule is broken.

    Rules: operands and attributes fit the op table, result types are what it infers, constants are
    in the store with the type they claim, names are unique, outputs exist. ``after`` names the pass
    that made the graph.
    """
    if not graph.outputs:
        raise InvalidGraph(f"graph '{graph.name}' has no output")
    names: set[str] = set()
    for node in graph.nodes:
        fault = _fault(graph, node)
        if fault is None and node.name in names:
            fault = f"the name %{node.name} is taken"
        if fault is not None:
            blame = f" after {after}" if after else ""
            raise InvalidGraph(
                f"invalid graph{blame}: {print_node(node)}\n  {fault}\n\n{_excerpt(graph, node)}",
                where=node.source or None,
            )
        names.add(node.name)


def _fault(graph: Graph, node: Node) -> str | None:
    """What is wrong with ``node``, or None."""
    if node.op == "input":
        return None if node in graph.inputs else "an input that the graph does not list"
    if node.op == "constant":
        return _constant_fault(graph, node)
    if node.op == "result":
        ok = node.types == (node.operands[0].types[int(node["index"])],)
        return None if ok else "its type is not that of the result it takes"
    try:
        inferred, full = infer(node.op, node.operands, node.attributes, node.source)
    except ButterflycError as error:
        return error.what
    plain = tuple(replace(type, layout=None, scale=None) for type in node.types)
    if inferred != plain:
        return f"its shape rule gives {' x '.join(map(str, inferred))}"
    if dict(full) != dict(node.attributes):
        return f"its attributes are incomplete: {dict(full)} wanted"
    return None


def _constant_fault(graph: Graph, node: Node) -> str | None:
    array = graph.constants.get(str(node["digest"]))
    if array is None:
        return f"no constant with digest {node['digest']} stands beside the graph"
    if node.type.layout is None and tuple(array.shape) != node.type.shape:
        return f"its data have shape {list(array.shape)}"
    if node.type.layout is None and array.dtype != node.type.storage:
        return f"its data are {array.dtype}"
    return None


def _excerpt(graph: Graph, node: Node, around: int = 4) -> str:
    """The lines of the graph near ``node``, with it marked."""
    lines = print_graph(graph, mark=node).splitlines()
    at = next((i for i, line in enumerate(lines) if set(line.strip()) == {"^"}), 0)
    return "\n".join(lines[max(0, at - around) : at + around])
