"""What an expert costs: its part of each constant, over all layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..compiler.ir import Graph, Node
from ..compiler.ir.views import root_of
from ..passes.arena import aligned

ROTATIONS = ("integer_rotate", "integer_turn")
# Ops between a router's product and the choice: what they read beside it is the router's too.
ROUTING = ("reshape", "requantize", "saturating_add", "integer_softmax", "lookup")


@dataclass(frozen=True)
class Experts:
    """The routed layers of a model: ``count`` experts in each, ``chosen`` of them a token.

    ``constants`` are the bytes of every constant that has a part for each expert, by its digest;
    ``others`` are the bytes of all the rest, as they lie in memory.
    """

    count: int
    chosen: int
    layers: int
    constants: Mapping[str, int]
    others: int

    def weights(self, count: int) -> int:
        """The bytes of all weights with ``count`` experts a layer, as they lie in memory."""
        parts = (aligned(each * count // self.count) for each in self.constants.values())
        return self.others + sum(parts)

    @property
    def bytes_each(self) -> int:
        """Bytes of one expert over all layers, without padding between constants."""
        return sum(self.constants.values()) // self.count

    def fitting(self, usable: int) -> int:
        """The most experts a layer whose weights, with all others, fit ``usable`` bytes."""
        low, high = 0, max(1, usable // max(1, self.bytes_each)) + 1
        while low < high:  # weights() grows with the count
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.weights(middle) <= usable else (low, middle - 1)
        return low


def experts_of(graph: Graph) -> Experts | None:
    """The experts of ``graph``; None if it routes nothing, or its layers differ in their number."""
    rotations = [node for node in graph.nodes if node.op in ROTATIONS and _routed(node)]
    choices = {root_of(node.operands[2])[0] for node in rotations}
    counts = {choice.operands[0].type.shape[-1] for choice in choices}
    chosen = {int(choice["k"]) for choice in choices}
    if len(counts) != 1 or len(chosen) != 1:
        return None
    count = counts.pop()
    owned = [node.operands[1] for node in rotations]
    for choice in choices:
        owned += _router(choice, count)
    digests = {str(node["digest"]) for node in owned}
    sizes = {digest: graph.constants[digest].nbytes for digest in sorted(digests)}
    if any(size % count for size in sizes.values()):
        return None
    others = sum(aligned(a.nbytes) for key, a in graph.constants.items() if key not in digests)
    return Experts(count, chosen.pop(), len(choices), sizes, others)


def _routed(node: Node) -> bool:
    """Whether the rotation is one that each token's expert chooses."""
    return (
        len(node.operands) > 2
        and root_of(node.operands[2])[0].op == "top_k"
        and node.operands[1].op == "constant"
    )


def _router(choice: Node, count: int) -> list[Node]:
    """The constants with a part for each expert, from the choice back to the router's product."""
    found: list[Node] = []
    node = choice.operands[0]
    while node.op in ROUTING:
        found += [c for c in _constants(node) if c.type.shape[-1:] == (count,)]
        node = node.operands[0]
    return found + [c for c in _constants(node) if c.type.shape[:1] == (count,)]


def _constants(node: Node) -> list[Node]:
    """The constants that a node reads beside its first operand; a table belongs to no expert."""
    beside = () if node.op == "lookup" else node.operands[1:]
    return [operand for operand in beside if operand.op == "constant"]
