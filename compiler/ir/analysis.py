"""The networkx view of a graph: for questions about its shape, never for changing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .graph import Graph, Node
from .text import print_node

if TYPE_CHECKING:
    import networkx as nx

Weight = Callable[[Node], float]


def as_networkx(graph: Graph) -> nx.MultiDiGraph:
    """Nodes by name, edges from operand to user with their ``position``.

    Each node carries its op, its types and its source line as plain data.
    """
    import networkx as nx

    view = nx.MultiDiGraph(name=graph.name)
    for node in graph.nodes:
        types = [str(type) for type in node.types]
        view.add_node(node.name, op=node.op, types=types, source=node.source)
        for position, operand in enumerate(node.operands):
            view.add_edge(operand.name, node.name, position=position)
    return view


def dominators(graph: Graph, entry: Node) -> dict[str, str | None]:
    """For each node that ``entry`` reaches, the last other node that every path to it passes.

    None for ``entry`` itself.
    """
    import networkx as nx

    found = dict(nx.immediate_dominators(as_networkx(graph), entry.name))
    found[entry.name] = None
    return found


def critical_path(graph: Graph, weight: Weight = lambda node: 1.0) -> list[str]:
    """Names along the heaviest chain of operand and user; ``weight`` of a node, at least 0."""
    best: dict[Node, tuple[float, Node | None]] = {}
    for node in graph.nodes:
        before = max(node.operands, key=lambda operand: best[operand][0], default=None)
        best[node] = (best[before][0] if before else 0.0) + weight(node), before
    end: Node | None = max(best, key=lambda node: best[node][0], default=None)
    path: list[str] = []
    while end is not None:
        path.append(end.name)
        end = best[end][1]
    return path[::-1]


def lifetimes(graph: Graph) -> dict[str, tuple[int, int]]:
    """For each node, the step that makes it and the last step that reads it.

    Steps count ``graph.nodes``; what leaves the graph lives to the end.
    """
    step = {node: i for i, node in enumerate(graph.nodes)}
    end = len(step) - 1
    return {
        node.name: (
            step[node],
            end if node in graph.outputs else max((step[u] for u in users), default=step[node]),
        )
        for node, users in graph.users.items()
    }


def as_dot(graph: Graph) -> str:
    """The graph in Graphviz's language: constants as small boxes, source lines as tooltips."""
    lines = [f"digraph {_quoted(graph.name)} {{", "  node [shape=box, fontname=monospace];"]
    for node in graph.nodes:
        if node.op == "constant":
            look: dict[str, Any] = {"label": node.name, "shape": "note", "fontsize": 9}
        else:
            types = "\n".join(map(str, node.types))
            look = {"label": f"{node.name}\n{node.op}\n{types}"}
        look["tooltip"] = node.source or print_node(node)
        text = ", ".join(f"{key}={_quoted(str(value))}" for key, value in look.items())
        lines.append(f"  {_quoted(node.name)} [{text}];")
        for operand in node.operands:
            lines.append(f"  {_quoted(operand.name)} -> {_quoted(node.name)};")
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
