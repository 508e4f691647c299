"""The gates of a mixture: which nodes may hold them, and where in a node each token's lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, permutations

import numpy as np

from ..ir.graph import Graph, Node
from .recognise_probe import ancestors
from .recognise_rows import Rows, layouts, plain_rows

Array = np.ndarray
MOST_CHOICES = 40  # of nodes that hold the gate of one slot each


@dataclass(frozen=True)
class Part:
    """Nodes of one value that hold the factors of ``slots``, one row a token.

    ``slots`` is None where a row has a factor for each expert, zero for those not chosen.
    """

    nodes: tuple[Node, ...]
    rows: Rows
    slots: tuple[int, ...] | None

    @property
    def is_dense(self) -> bool:
        return self.slots is None


@dataclass(frozen=True)
class Gates:
    """The factors of the k chosen experts: in one node, or in a node for each slot."""

    parts: tuple[Part, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes that hold gates."""
        return tuple(node for part in self.parts for node in part.nodes)

    @property
    def heads(self) -> tuple[Node, ...]:
        """One node for each part."""
        return tuple(part.nodes[0] for part in self.parts)

    @property
    def is_dense(self) -> bool:
        """Whether there is a factor for each expert."""
        return self.parts[0].is_dense

    def write(self, experts: Array, gates: Array, others: Array) -> dict[Node, Array]:
        """The nodes' values where ``experts`` [T, k] have the factors ``gates``.

        Where there is a factor for each expert, the others have those of ``others`` [T, E].
        """
        found: dict[Node, Array] = {}
        for part in self.parts:
            if part.slots is None:
                row = others.astype(np.float64)
                np.put_along_axis(row, experts, gates.astype(np.float64), 1)
            else:
                row = gates[:, part.slots].astype(np.float64)
            value = part.rows.write(row[:, None])
            found |= {node: value.reshape(node.type.shape) for node in part.nodes}
        return found

    def read(self, values: Sequence[Array], experts: Array) -> Array:
        """The factors [T, k] of the chosen ``experts`` [T, k], from the values of ``heads``."""
        rows = [part.rows.read(value)[:, 0] for part, value in zip(self.parts, values, strict=True)]
        if self.is_dense:
            return np.take_along_axis(rows[0], experts, 1)
        return np.concatenate(rows, axis=1)


def gate_candidates(
    graph: Graph, top_k: Node, values: tuple[Node, ...], tokens: int, count: int
) -> Iterator[Gates]:
    """Nodes that may hold the gates, nearest to the routing first."""
    k = int(top_k["k"])
    every = tuple(range(k))
    if values:
        yield Gates((Part(values, plain_rows((tokens, k)), every),))
    behind: set[Node] = {top_k}
    seen = set(values)
    single: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if behind.isdisjoint(node.operands) or node.op == "top_k":
            continue
        behind.add(node)
        if node in values or len(node.types) > 1 or not node.type.is_float:
            continue
        moved = node.op == "reshape" and node.operands[0] in seen
        if node.type.size in (tokens * k, tokens * count):
            seen.add(node)
            # Where all experts are chosen, a row may be in the order of either.
            kinds: list[tuple[int, ...] | None] = [every] if node.type.size == tokens * k else []
            kinds += [None] if node.type.size == tokens * count else []
            for rows in layouts(node.type.shape, tokens, 1) if not moved else ():
                for slots in kinds:
                    yield Gates((Part((node,), rows, slots),))
        if node.type.size == tokens and k > 1 and node.op != "reshape":
            single.setdefault(node.op, []).append(node)
    for nodes in single.values():
        for chosen in islice(combinations(nodes, k), MOST_CHOICES):
            if _are_parallel(chosen):
                yield _one_by_one(chosen, tokens)
    if k == 2:  # such as w and 1 - w
        others = [node for nodes in single.values() for node in nodes][::-1]
        for chosen in islice(permutations(others, 2), MOST_CHOICES):
            if chosen[0].op != chosen[1].op or not _are_parallel(chosen):
                yield _one_by_one(chosen, tokens)
    for node in _scores(graph, top_k, behind):
        for rows in layouts(node.type.shape, tokens, 1):
            yield Gates((Part((node,), rows, None),))


def _scores(graph: Graph, top_k: Node, behind: set[Node]) -> list[Node]:
    """Scores of all experts in front of the routing or beside it, nearest first.

    Their factors for those that were not chosen count for nothing where a mask leaves these out.
    """
    shape = top_k.operands[0].type.shape
    before = ancestors(top_k)
    found: dict[Node, None] = {}
    for node in graph.nodes:
        like = len(node.types) == 1 and node.type.is_float and node.type.shape == shape
        beside = not found.keys().isdisjoint(node.operands)
        if like and node not in behind and node.op != "input" and (node in before or beside):
            found[node] = None
    return list(found)[::-1]


def _are_parallel(nodes: Sequence[Node]) -> bool:
    """Whether none of ``nodes`` needs another of them."""
    needed = [ancestors(node) for node in nodes]
    return not any(a in needed[j] for i, a in enumerate(nodes) for j in range(len(nodes)) if i != j)


def _one_by_one(nodes: Sequence[Node], tokens: int) -> Gates:
    """Gates in a node for each slot."""
    return Gates(tuple(_one_slot(node, tokens, slot) for slot, node in enumerate(nodes)))


def _one_slot(node: Node, tokens: int, slot: int) -> Part:
    """A node with one number a token."""
    return Part((node,), plain_rows((tokens, 1)), (slot,))
