"""What an expert costs: its part of each constant, over all layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..compiler.ir import Graph
from ..passes.arena import aligned
from ..passes.expert_parts import routed_layers


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
    layers = routed_layers(graph)
    counts = {layer.count for layer in layers}
    chosen = {layer.chosen for layer in layers}
    if len(counts) != 1 or len(chosen) != 1:
        return None
    count = counts.pop()
    owned = [node for layer in layers for node in (*layer.rotations, *layer.router)]
    digests = {str(node["digest"]) for node in owned}
    sizes = {digest: graph.constants[digest].nbytes for digest in sorted(digests)}
    if any(size % count for size in sizes.values()):
        return None
    others = sum(aligned(a.nbytes) for key, a in graph.constants.items() if key not in digests)
    return Experts(count, chosen.pop(), len(layers), sizes, others)
