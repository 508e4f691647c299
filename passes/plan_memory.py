"""Give every intermediate result and every scratch buffer a place in one static arena.

    %y = linear(%x, %w) : f32[65, 256]
    ->
    %y = linear(%x, %w) : f32[65, 256] @ {at = [66560]}

Buffers that are needed at the same time (`arena`) do not overlap. First fit over an order of the
buffers, then a hill-climb on that order, which stops at the lower bound: the most bytes that are
alive at once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..compiler.ir import Graph, Node, rebuild
from ..compiler.ir.schedule import is_computed
from ..compiler.ir.views import is_laid_out
from ..kernels.lanes import Lanes
from ..kernels.record import Kernel
from .arena import Buffer, Key, aligned, buffers_of


def lower_bound(buffers: Sequence[Buffer]) -> int:
    """The most bytes alive at one step: no plan can need less."""
    steps = {buffer.first for buffer in buffers}
    return max(
        (sum(aligned(b.bytes) for b in buffers if b.first <= s <= b.last) for s in steps), default=0
    )


def first_fit(buffers: Sequence[Buffer]) -> dict[Key, int]:
    """Offsets: each buffer, in the order given, at the lowest place that is free while it lives."""
    placed: list[tuple[int, int, Buffer]] = []
    for buffer in buffers:
        size, offset = aligned(buffer.bytes), 0
        taken = sorted((at, end) for at, end, other in placed if other.meets(buffer))
        for at, end in taken:
            if offset + size <= at:
                break
            offset = max(offset, end)
        placed.append((offset, offset + size, buffer))
    return {buffer.key: at for at, _, buffer in placed}


def plan(buffers: Sequence[Buffer], tries: int = 400) -> tuple[dict[Key, int], int]:
    """Offsets and the arena's bytes. Deterministic: the climb is seeded."""
    size = {b.key: aligned(b.bytes) for b in buffers}

    def height(order: Sequence[Buffer]) -> tuple[int, dict[Key, int]]:
        offsets = first_fit(order)
        return max((offsets[key] + size[key] for key in offsets), default=0), offsets

    bound = lower_bound(buffers)
    starts = (
        sorted(buffers, key=lambda b: (-b.bytes, b.first)),
        sorted(buffers, key=lambda b: (-b.bytes * (b.last - b.first + 1), b.first)),
        list(buffers),
    )
    best, order = min(((height(start), list(start)) for start in starts), key=lambda x: x[0][0])
    generator = random.Random(0)
    for _ in range(tries if len(order) > 1 else 0):
        if best[0] <= bound:
            break
        i, j = generator.randrange(len(order)), generator.randrange(len(order))
        changed = list(order)
        changed.insert(j, changed.pop(i))
        outcome = height(changed)
        if outcome[0] <= best[0]:
            best, order = outcome, changed
    return best[1], best[0]


@dataclass(frozen=True)
class PlanMemory:
    """``keep_routing`` keeps the chosen experts readable in the arena after a run.

    With ``sharing`` a result may take the place of an operand (`arena`): its kernel must take
    pointers that are the same, which the note ``in_place`` says. The note ``tiled`` lists results
    of which there is never more than a tile.
    """

    kernels: tuple[Kernel, ...]
    lanes: Lanes
    keep_routing: bool = False
    sharing: bool = False

    name = "plan_memory"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        buffers = buffers_of(graph, self.kernels, self.lanes, self.keep_routing, self.sharing)
        places, arena = plan(buffers.own)
        offsets = buffers.offsets(places)

        def place(node: Node) -> Node:
            if not is_computed(node):
                return node
            at = tuple(offsets.get((node.name, i), -1) for i in range(len(node.types)))
            notes: dict[str, Any] = {"at": at}
            scratch: list[int] = []
            while (node.name, -1 - len(scratch)) in offsets:
                scratch.append(offsets[node.name, -1 - len(scratch)])
            if scratch:
                notes["scratch"] = tuple(scratch)
            tiled = tuple(i for i in range(len(at)) if (node.name, i) in buffers.tiled)
            if tiled:
                notes["tiled"] = tiled
            if (node.name, 0) in buffers.in_place:
                notes["in_place"] = True
            if self.sharing and is_laid_out(node):  # the driver copies what is elsewhere
                return replace(node, notes=notes)
            return node.with_notes(**notes)

        notes = {
            **graph.notes,
            "arena_bytes": arena,
            "arena_lower_bound": lower_bound(buffers.own),
        }
        return replace(rebuild(graph, place), notes=notes)
