"""The graph: immutable SSA of one node type, constants beside it.

A node names its op and its operands, so a graph is given by its outputs; what no output needs is
not part of it. Nodes are compared by identity, graphs by structure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from .types import Type, type_of

# The note of a graph that holds the names which the model gives its results.
RESULTS = "results"
Attribute = bool | int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Node:
    """One operation. Build it with `compiler.ir.build.make`, which checks it.

    ``attributes`` are part of what is computed, ``notes`` say how (kernel, arena offset) and change
    no result. An op with several results has a tuple of types, and is read through `result` nodes.
    """

    op: str
    operands: tuple[Node, ...]
    types: tuple[Type, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    name: str = ""
    source: str = ""
    notes: Mapping[str, Attribute] = field(default_factory=dict)

    @property
    def type(self) -> Type:
        if len(self.types) != 1:
            raise ValueError(f"'{self.name}' ({self.op}) has {len(self.types)} results; take one")
        return self.types[0]

    def __getitem__(self, attribute: str) -> Any:
        return self.attributes[attribute]

    def with_notes(self, **notes: Attribute) -> Node:
        return replace(self, notes={**self.notes, **notes})

    def __repr__(self) -> str:
        types = ", ".join(map(str, self.types))
        return f"<{self.op} %{self.name}: {types}>"


def topological_order(outputs: Iterable[Node], inputs: Iterable[Node] = ()) -> tuple[Node, ...]:
    """Every node that ``outputs`` need, operands first; ``inputs`` lead in their given order."""
    order: dict[Node, None] = dict.fromkeys(inputs)
    stack: list[tuple[Node, bool]] = [(node, False) for node in reversed(tuple(outputs))]
    while stack:
        node, operands_done = stack.pop()
        if node in order:
            continue
        if operands_done:
            order[node] = None
        else:
            stack.append((node, True))
            stack.extend((operand, False) for operand in reversed(node.operands))
    return tuple(order)


@dataclass(frozen=True, eq=False)
class Graph:
    """A computation from ``inputs`` to ``outputs``. Constants stand beside it, keyed by digest."""

    name: str
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Mapping[str, Attribute] = field(default_factory=dict)

    def __post_init__(self) -> None:
        inputs, outputs = _with_unique_names(self.inputs, self.outputs)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "outputs", outputs)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, operands before users; the order in which a graph is printed and run."""
        return topological_order(self.outputs, self.inputs)

    @cached_property
    def results(self) -> tuple[str, ...]:
        """A name for each output, all different: what the model calls it, or the node's name."""
        given = self.notes.get(RESULTS)
        return unique(given if isinstance(given, tuple) else [node.name for node in self.outputs])

    @cached_property
    def users(self) -> Mapping[Node, tuple[Node, ...]]:
        """For each node, the nodes that read it (once per operand position)."""
        users: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for operand in node.operands:
                users[operand].append(node)
        return {node: tuple(readers) for node, readers in users.items()}

    def find(self, name: str) -> Node:
        """The node called ``name``. Raises KeyError if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def value(self, node: Node) -> np.ndarray:
        """The array of a `constant` node, as it is stored (packed where its type has a layout)."""
        return self.constants[str(node["digest"])]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and _structure(self) == _structure(other)

    def __hash__(self) -> int:
        return hash(_structure(self))

    def __str__(self) -> str:
        from .text import print_graph

        return print_graph(self)


def digest_of(array: np.ndarray) -> str:
    """A name for the contents of ``array``: 16 hex digits over dtype, shape and bytes."""
    head = f"{array.dtype.str}{array.shape}".encode()
    return sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def constant(
    store: dict[str, np.ndarray], array: np.ndarray, name: str = "", type: Type | None = None
) -> Node:
    """A node that holds ``array``, put into ``store``; ``type`` where NumPy cannot tell it."""
    array = np.asarray(array)
    digest = digest_of(array)
    store[digest] = array
    return Node("constant", (), (type or type_of(array),), {"digest": digest}, name or "constant")


def rebuild(
    graph: Graph,
    change: Callable[[Node], Node],
    constants: Mapping[str, np.ndarray] | None = None,
) -> Graph:
    """The graph in which ``change`` was applied to every node, operands first.

    ``change`` gets the node with its operands already changed and returns what stands in its place.
    """
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        operands = tuple(new[operand] for operand in node.operands)
        same = all(a is b for a, b in zip(operands, node.operands, strict=True))
        new[node] = change(node if same else replace(node, operands=operands))
    return Graph(
        graph.name,
        tuple(new[node] for node in graph.inputs),
        tuple(new[node] for node in graph.outputs),
        graph.constants if constants is None else constants,
        graph.notes,
    )


def unique(names: Iterable[object]) -> tuple[str, ...]:
    """``names``, with numbers behind those that were there before."""
    taken: dict[str, None] = {}
    for name in map(str, names):
        new, count = name, 1
        while new in taken:
            count += 1
            new = f"{_stem(name)}_{count}"
        taken[new] = None
    return tuple(taken)


def _with_unique_names(
    inputs: tuple[Node, ...], outputs: tuple[Node, ...]
) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """Nodes renamed where two share a name, so that the text form can name each one."""
    taken: set[str] = set()
    new: dict[Node, Node] = {}
    for node in topological_order(outputs, inputs):
        name, count = node.name or node.op, 1
        while name in taken:
            count += 1
            name = f"{_stem(node.name or node.op)}_{count}"
        taken.add(name)
        operands = tuple(new[operand] for operand in node.operands)
        same = all(a is b for a, b in zip(operands, node.operands, strict=True))
        unchanged = same and name == node.name
        new[node] = node if unchanged else replace(node, name=name, operands=operands)
    return tuple(new[node] for node in inputs), tuple(new[node] for node in outputs)


def _stem(name: str) -> str:
    head, _, tail = name.rpartition("_")
    return head if head and tail.isdigit() else name


def _structure(graph: Graph) -> tuple[Any, ...]:
    number = {node: i for i, node in enumerate(graph.nodes)}
    rows = tuple(
        (
            node.op,
            tuple(number[operand] for operand in node.operands),
            node.types,
            tuple(sorted(node.attributes.items())),
            tuple(sorted(node.notes.items())),
            node.name,
            node.source,
        )
        for node in graph.nodes
    )
    ends = tuple(number[n] for n in graph.inputs), tuple(number[n] for n in graph.outputs)
    return graph.name, rows, ends, tuple(sorted(graph.notes.items()))
