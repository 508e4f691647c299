"""Where a kernel's scratch would make the arena larger, a way that takes less of it.

    %y = quantized_linear(%x, %w, ..) : i16[2, 256] @ {kernel = "ternary_dot_table"}
    ->
    %y = quantized_linear(%x, %w, ..) : i16[2, 256] @ {kernel = "integer_products"}

Every op has a least scratch, and so the arena has a least size: what is alive at its fullest step.
All ops may use the memory that is there then, and a little more (`SLACK`); of the ways that keep
to it the cheapest is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..compiler.ir import Graph, Node, rebuild
from .arena import Buffer, aligned, buffers_of, computed_nodes, tensor_bytes
from .select_kernels import SelectKernels, Way, spec_of, with_kernel

# How much larger than its least size the arena may be, for speed.
SLACK = 0.05


def alive(buffers: Sequence[Buffer], time: int, scratch: bool) -> int:
    """Bytes of results, or of scratch, that are needed at ``time``."""
    sizes = (b.bytes for b in buffers if b.first <= time <= b.last and (b.key[1] < 0) is scratch)
    return sum(map(aligned, sizes))


@dataclass(frozen=True)
class SpareArena:
    """Behind ``select``, in an arena that is planned with ``keep_routing`` and ``sharing``.

    Only ways are taken whose price is less than ``within`` above the least one.
    """

    select: SelectKernels
    keep_routing: bool = False
    sharing: bool = False
    within: float = math.inf

    name = "spare_arena"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        kernels, lanes = self.select.kernels, self.select.lanes
        buffers = buffers_of(graph, kernels, lanes, self.keep_routing, self.sharing).own
        times = [(n, t) for t, n in enumerate(computed_nodes(graph)) if "kernel" in n.notes]
        results = {node: alive(buffers, time, scratch=False) for node, time in times}
        ways = {node: self._cheap(node) for node, _ in times}
        least = [results[node] + min(size for size, _ in ways[node]) for node, _ in times]
        most = int(max(least, default=0) * (1 + SLACK))
        changed: dict[str, Way] = {}
        for node, time in times:
            if results[node] + alive(buffers, time, scratch=True) > most:
                fitting = [way for size, way in ways[node] if results[node] + size <= most]
                changed[node.name] = min(fitting, key=lambda way: way[:3])

        def spare(node: Node) -> Node:
            if node.name not in changed:
                return node
            _, kernel, _, parameters = changed[node.name]
            return with_kernel(node, kernel, parameters)

        return rebuild(graph, spare)

    def _cheap(self, node: Node) -> list[tuple[int, Way]]:
        """Those of `_ways` that are cheap enough."""
        found = list(self._ways(node))
        most = min(way[0] for _, way in found) + self.within
        return [(size, way) for size, way in found if way[0] < most]

    def _ways(self, node: Node) -> Iterator[tuple[int, Way]]:
        """Each way to compute ``node``, and how much scratch it takes."""
        spec = spec_of(node)
        kernels = {kernel.name: kernel for kernel in self.select.kernels}
        for way in self.select.ways(node):
            asked = spec.with_parameters(way[3])
            scratch = kernels[way[1]].scratch(asked, self.select.lanes)
            yield sum(aligned(tensor_bytes(each)) for each in scratch), way
