"""What passes share: how one is found by its name, and how a graph is rewritten node by node.

A rule looks at one node, whose operands are already rewritten, and returns what stands in its
place, or None. `rewrite` applies rules until none of them has anything to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..compiler.errors import unknown_name
from ..compiler.ir import Graph, Node, Type, constant
from ..compiler.ir.interpret import constant_value
from ..compiler.ir.ops import elementwise

ELEMENTWISE = frozenset(entry.name for entry in elementwise.OPS)
PRODUCTS = frozenset({"linear", "ternary_matmul"})  # rows by a constant matrix [N, K]
MOST_WALKS = 10_000


class Pass(Protocol):
    """A graph to a graph of the same meaning; ``name`` is that of its file.

    ``exact``: to float64 round-off. A pass that is not states its budget in its docstring.
    """

    @property
    def name(self) -> str: ...

    @property
    def exact(self) -> bool: ...

    def __call__(self, graph: Graph) -> Graph: ...


def load(name: str) -> Callable[..., Pass]:
    """The class of the pass ``name``, ready to be called with its options.

    Raises UnknownName with the nearest names if there is no such pass.
    """
    module, known = name.replace("-", "_"), names()
    if module not in known:
        raise unknown_name("pass", name, known)
    found: Callable[..., Pass] = getattr(_module(module), _class_name(module))
    return found


def names() -> tuple[str, ...]:
    """Every pass: the files here that hold a class of their own name."""
    modules = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    return tuple(module for module in modules if hasattr(_module(module), _class_name(module)))


def _module(name: str) -> object:
    return import_module(f".{name}", __package__)


def _class_name(module: str) -> str:
    return "".join(word.capitalize() for word in module.split("_"))


class Walk:
    """One walk over a graph: its constants and those made on the way, and who reads what."""

    def __init__(self, graph: Graph) -> None:
        self.constants: dict[str, np.ndarray] = dict(graph.constants)
        self.readers: Counter[Node] = Counter()
        self.seen: dict[Any, Node] = {}  # by what they compute
        self.made: dict[tuple[str, str, Type], Node] = {}

    def value(self, node: Node) -> np.ndarray:
        """The logical array of a constant node."""
        return constant_value(self.constants, node)

    def constant(self, array: np.ndarray, name: str, type: Type | None = None) -> Node:
        return constant(self.constants, np.asarray(array, order="C"), name, type)

    def read_once(self, node: Node) -> bool:
        """Whether nothing else reads ``node`` (a node made in this walk has one reader)."""
        return self.readers.get(node, 1) <= 1


Rule = Callable[[Node, Walk], Node | None]


def rewrite(graph: Graph, *rules: Rule) -> Graph:
    """``graph`` after each node was replaced by what the first willing rule offers, until none is.

    Constants that nothing reads any more are dropped.
    """
    for _ in range(MOST_WALKS):
        changed = walk_once(graph, *rules)
        if changed is None:
            return graph
        graph = changed
    raise AssertionError(f"rules do not come to an end: {[rule.__name__ for rule in rules]}")


def walk_once(graph: Graph, *rules: Rule) -> Graph | None:
    """One walk of `rewrite`; None if no rule had anything to say."""
    walk, new, changed = Walk(graph), dict[Node, Node](), False
    for node in graph.nodes:
        operands = tuple(new[operand] for operand in node.operands)
        same = all(a is b for a, b in zip(operands, node.operands, strict=True))
        current = node if same else replace(node, operands=operands)
        for rule in rules:
            other = rule(current, walk)
            if other is not None:
                assert other.types == node.types, f"{rule.__name__} made {other!r} of {node!r}"
                current, changed = other, True
                break
        new[node] = current
        walk.readers[current] += len(graph.users[node]) + graph.outputs.count(node)
    if not changed:
        return None
    outputs = tuple(new[node] for node in graph.outputs)
    inputs = tuple(new[node] for node in graph.inputs)
    return pruned(Graph(graph.name, inputs, outputs, walk.constants, graph.notes))


def pruned(graph: Graph) -> Graph:
    """``graph`` without the constants that it does not read."""
    read = {str(node["digest"]) for node in graph.nodes if node.op == "constant"}
    kept = {digest: array for digest, array in graph.constants.items() if digest in read}
    return replace(graph, constants=kept)


def is_constant(node: Node) -> bool:
    """Whether ``node`` is a constant in its plain layout, which a pass may take apart."""
    return node.op == "constant" and node.type.layout is None


def same_value(a: Node, b: Node) -> bool:
    """Whether two nodes are one, or constants of one content."""
    both = is_constant(a) and is_constant(b)
    return a is b or (both and a["digest"] == b["digest"] and a.types == b.types)


def merge_equal(node: Node, walk: Walk) -> Node | None:
    """The node that already computes what ``node`` does."""
    if node.op in ("input", "constant"):
        return None
    operands = tuple(
        (operand["digest"], operand.types) if is_constant(operand) else operand
        for operand in node.operands
    )
    key: Any = (node.op, operands, tuple(sorted(node.attributes.items())), node.types)
    first = walk.seen.setdefault(key, node)
    return None if first is node else first
