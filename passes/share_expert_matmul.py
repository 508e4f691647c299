"""Merge the k chains of a mixture, one for each chosen expert, into one on all their rows.

    %e0 = reshape(slice(%experts, 0..1))        %1 = reshape(%h) : f32[T, 1, d]
    %r0 = rotate(%h, %blocks, %e0)              %r0 = rotate(%1, %blocks, %experts)
    %u0 = ternary_matmul(%r0, %w, %scale)   ->  %u0 = ternary_matmul(%r0, %w, %scale)
    %m0 = mul(%u0, slice(%gates, 0..1))         %y = combine(%u0, %gates) : f32[T, n]
    ... the same for %e1 ...                    rotated and multiplied: f32[T, k, ...]
    %y = add(%m0, %m1)

W_hat is shared, so all (token, chosen expert) rows go through one product. The chains are zipped
from the weighted sum down: where they meet they are one, columns of one tensor become that tensor,
and elsewhere they must be the same ops with the same constants. Other summands come after.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..compiler.ir import Graph, Node, make, remake, topological_order
from .base import ELEMENTWISE, Walk, is_constant, merge_equal, rewrite, same_value

# Ops on whole rows: the first operand has the rows, the others are fixed.
ROWWISE = frozenset({"rotate", "shuffle", "ternary_matmul", "linear", "layer_norm", "softmax"})
Nodes = tuple[Node, ...]


def column(node: Node, walk: Walk) -> tuple[Node, int] | None:
    """The tensor [T, k] of which ``node``, [T] or [T, 1], is a column, and which one."""
    tokens = node.type.size
    while node.op == "reshape" and node.operands[0].type.shape in ((tokens,), (tokens, 1)):
        node = node.operands[0]
    if node.op == "slice" and node.operands[0].type.rank == 2:
        if node["axis"] % 2 == 1 and node.type.shape[1] == 1:
            return node.operands[0], int(node["start"])
    elif node.op == "take" and is_constant(node.operands[1]) and node["axis"] % 2 == 1:
        index = walk.value(node.operands[1])
        if node.operands[0].type.rank == 2 and index.size == 1:
            return node.operands[0], int(index.item()) % node.operands[0].type.shape[1]
    elif node.type.shape == (tokens, 1):
        return node, 0
    return None


def all_columns(nodes: Nodes, walk: Walk) -> Node | None:
    """The tensor [T, k] whose columns ``nodes`` are, all of them and in order."""
    found = [column(node, walk) for node in nodes]
    if found[0] is None:
        return None
    tensor = found[0][0]
    wanted = [(tensor, i) for i in range(tensor.type.shape[1])]
    return tensor if found == wanted else None


@dataclass
class Zipper:
    """Zips nodes [T, ...] of k chains into one [T, k, ...], or [T, 1, ...] where they are one.

    ``varies`` says of a node whether it depends on the slot, where all chains hold the same node.
    """

    walk: Walk
    tokens: int
    varies: Callable[[Node], bool]

    def __post_init__(self) -> None:
        self.done: dict[Nodes, Node | None] = {}

    def zip(self, nodes: Nodes) -> Node | None:
        """The zipped node, or None if the chains differ."""
        if nodes not in self.done:
            self.done[nodes] = self._zip(nodes)
        return self.done[nodes]

    def _zip(self, nodes: Nodes) -> Node | None:
        first, shape = nodes[0], nodes[0].type.shape
        if shape in ((self.tokens,), (self.tokens, 1)):
            tensor = all_columns(nodes, self.walk)
            if tensor is not None:
                return _reshaped(tensor, (*tensor.type.shape, *shape[1:]))
        if all(same_value(node, first) for node in nodes) and not self.varies(first):
            return self._shared(first)
        if any(n.op != first.op or n.attributes != first.attributes for n in nodes):
            return None
        if any(len(n.operands) != len(first.operands) or n.types != first.types for n in nodes):
            return None
        if first.op in ROWWISE:
            return self._rows(nodes)
        return self._elementwise(nodes) if first.op in ELEMENTWISE else None

    def _shared(self, node: Node) -> Node | None:
        shape = node.type.shape
        if len(shape) < 2:  # a row or a number, the same for all rows
            return node
        if len(shape) != 2 or shape[0] not in (1, self.tokens):
            return None
        if is_constant(node):
            array = self.walk.value(node)[:, None]
            return self.walk.constant(array, node.name, node.type.with_shape(*array.shape))
        return _reshaped(node, (shape[0], 1, shape[1]))

    def _rows(self, nodes: Nodes) -> Node | None:
        first = nodes[0]
        if first.op == "softmax" and first["axis"] % first.type.rank != first.type.rank - 1:
            return None
        attributes = {"axis": -1} if first.op == "softmax" else {}
        x, *fixed = zip(*(node.operands for node in nodes), strict=True)
        zipped = [self.zip(x)]
        if first.op == "rotate":
            zipped.append(self.zip(fixed.pop()))
        if any(node is None or node.type.rank < 2 for node in zipped):
            return None
        if any(not same_value(node, operands[0]) for operands in fixed for node in operands):
            return None
        rows, *experts = (node for node in zipped if node is not None)
        return remake(first, rows, *(operands[0] for operands in fixed), *experts, **attributes)

    def _elementwise(self, nodes: Nodes) -> Node | None:
        first, operands = nodes[0], []
        for column in zip(*(node.operands for node in nodes), strict=True):
            operand = self.zip(column)
            if operand is None:
                return None
            # Operands of fewer axes lie along the last ones, and a slot axis would move them.
            given = column[0].type.rank
            if given not in (0, first.type.rank) and operand is not column[0]:
                return None
            if given == first.type.rank == 1 and operand.type.rank == 1:
                return None
            operands.append(operand)
        return remake(first, *operands)


def _reshaped(node: Node, shape: tuple[int, ...]) -> Node:
    if node.type.shape == shape:
        return node
    return make("reshape", node, shape=shape, name=f"{node.name}.rows", source=node.source)


def summands(node: Node, walk: Walk) -> list[Node]:
    """The leaves of the tree of additions that ends in ``node``."""
    leaves, todo = [], [node]
    while todo:
        leaf = todo.pop()
        inside = leaf is node or walk.read_once(leaf)
        if leaf.op == "add" and inside and leaf.type == node.type:
            todo.extend(reversed(leaf.operands))
        else:
            leaves.append(leaf)
    return leaves


def gated(leaf: Node, walk: Walk) -> tuple[Node, tuple[Node, int]] | None:
    """(value, (gates, slot)) of a ``leaf`` that is a value [T, n] times its gate [T, 1]."""
    if leaf.op != "mul" or leaf.type.rank != 2 or not walk.read_once(leaf):
        return None
    tokens = leaf.type.shape[0]
    for value, gate in (leaf.operands, leaf.operands[::-1]):
        if gate.type.shape == (tokens, 1) and value.type.shape == leaf.type.shape:
            gate_column = column(gate, walk)
            if gate_column is not None:
                return value, gate_column
    return None


def slot_dependence(value: Node) -> Callable[[Node], bool]:
    """Which nodes depend on the slot, where k = 1 and so all chains are the same nodes.

    Those that the last rotation's expert numbers reach.
    """
    order = topological_order((value,))
    experts = next((n.operands[2] for n in reversed(order) if n.op == "rotate"), None)
    reached = {experts}
    for node in order:
        if not reached.isdisjoint(node.operands):
            reached.add(node)
    return lambda node: node in reached


def share(node: Node, walk: Walk) -> Node | None:
    """A sum of k gated chains as one chain and a `combine`."""
    if node.op not in ("add", "mul") or node.type.rank != 2:
        return None
    leaves = summands(node, walk)
    slots: dict[Node, dict[int, tuple[Node, Node]]] = {}
    for leaf in leaves:
        found = gated(leaf, walk)
        if found is not None:
            value, (gates, slot) = found
            slots.setdefault(gates, {})[slot] = (leaf, value)
    for gates, chains in slots.items():
        if len(chains) == gates.type.shape[1]:
            used = {leaf for leaf, _ in chains.values()}
            others = [leaf for leaf in leaves if leaf not in used]
            combined = zipped(gates, [chains[slot][1] for slot in sorted(chains)], node, walk)
            if combined is not None:
                return _plus(combined, others, node)
    return None


def zipped(gates: Node, values: list[Node], node: Node, walk: Walk) -> Node | None:
    """``combine`` of the zipped chains that end in ``values``."""
    tokens, count = gates.type.shape
    varies = slot_dependence(values[0]) if count == 1 else lambda _: False
    if count == 1 and not varies(values[0]):
        return None  # a row times a number, and no mixture
    rows = Zipper(walk, tokens, varies).zip(tuple(values))
    if rows is None or rows.type.shape != (tokens, count, node.type.shape[1]):
        return None
    return make("combine", rows, gates, name=node.name, source=node.source)


def _plus(combined: Node, others: list[Node], node: Node) -> Node:
    """``combined`` and the ``others`` added; the last sum has the name of ``node``."""
    total = replace(combined, name=f"{node.name}.experts") if others else combined
    for i, leaf in enumerate(others, 1):
        name = node.name if i == len(others) else f"{node.name}.sum"
        total = make("add", total, leaf, name=name, source=node.source)
    return total


@dataclass(frozen=True)
class ShareExpertMatmul:
    """One chain for each mixture of k chosen experts, k = 1 too."""

    name = "share_expert_matmul"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        return rewrite(graph, merge_equal, share)
