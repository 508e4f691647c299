"""The networkx view, and what is asked of it."""

from __future__ import annotations

import networkx as nx
import numpy as np

from butterflyc.compiler.ir import Graph, Type, constant, input_node, make, result
from butterflyc.compiler.ir.analysis import (
    as_dot,
    as_networkx,
    critical_path,
    dominators,
    lifetimes,
)


def diamond() -> Graph:
    """x -> a -> (b, c) -> d, with a constant, and a read twice."""
    store: dict[str, np.ndarray] = {}
    x = input_node("x", Type("f32", (4,)))
    one = constant(store, np.ones(4, np.float32), "one")
    a = make("add", x, one, name="a", source='say "a".py:1')
    b = make("exp", a, name="b")
    c = make("neg", make("abs", a, name="c0"), name="c")
    return Graph("diamond", (x,), (make("mul", b, c, name="d"),), store)


def test_the_view_has_every_node_and_every_operand() -> None:
    """Edges are as many as operands, and the order of the nodes is topological."""
    graph = diamond()
    view = as_networkx(graph)
    assert list(view) == [node.name for node in graph.nodes]
    assert view.number_of_edges() == sum(len(node.operands) for node in graph.nodes)
    assert nx.is_directed_acyclic_graph(view)
    assert view.nodes["a"] == {"op": "add", "types": ["f32[4]"], "source": 'say "a".py:1'}
    assert view.edges["c", "d", 0]["position"] == 1


def test_dominators_are_the_cuts_of_the_graph() -> None:
    """Where paths part and meet again, the node before the parting dominates."""
    graph = diamond()
    found = dominators(graph, graph.inputs[0])
    assert found == {"x": None, "a": "x", "b": "a", "c0": "a", "c": "c0", "d": "a"}


def test_the_critical_path_is_the_heaviest_chain() -> None:
    """By count it takes the longer side of the diamond; by weight the heavier one."""
    graph = diamond()
    assert critical_path(graph) == ["x", "a", "c0", "c", "d"]
    heavy = critical_path(graph, lambda node: 9.0 if node.op == "exp" else 1.0)
    assert heavy == ["x", "a", "b", "d"]


def test_values_live_until_their_last_reader() -> None:
    """A lifetime ends with the last user; outputs live to the end."""
    graph = diamond()
    step = {node.name: i for i, node in enumerate(graph.nodes)}
    found = lifetimes(graph)
    assert found["a"] == (step["a"], max(step["b"], step["c0"]))
    assert found["d"] == (step["d"], len(step) - 1)


def test_dot_names_everything_and_escapes_quotes() -> None:
    """The dot text has a line for each node and edge, with quotes escaped."""
    text = as_dot(diamond())
    assert text.count("->") == 7
    assert '\\"a\\".py' in text
    assert text.startswith('digraph "diamond" {')


def test_several_results_are_nodes_of_their_own() -> None:
    """A two-result op shows both of its types."""
    top = make("top_k", input_node("x", Type("f32", (4,))), k=2, name="top")
    view = as_networkx(Graph("g", (), (result(top, 0), result(top, 1))))
    assert view.nodes["top"]["types"] == ["f32[2]", "i64[2]"]
