"""Give every intermediate result and every scratch buffer a place in one static arena.

    %y = linear(%x, %w) : f32[65, 256]
    ->
    %y = linear(%x, %w) : f32[65, 256] @ {at = [66560]}

Buffers live from the op that makes them to the last op that reads them; those that live at the same
time do not overlap. First fit over an order of the buffers, then a hill-climb on that order, which
stops at the lower bound: the most bytes that are alive at once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..compiler.ir import Graph, Node, Type, rebuild
from ..compiler.ir.views import root_of
from ..kernels.lanes import Lanes
from ..kernels.layout import storage
from ..kernels.record import Kernel, Tensor
from .select_kernels import kernel_of, spec_of

ALIGNMENT = 64  # bytes: a cache line, and more than any vector load wants


@dataclass(frozen=True)
class Buffer:
    """``bytes`` that are needed from step ``first`` to step ``last``, both included."""

    key: tuple[str, int]
    bytes: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        return self.first <= other.last and other.first <= self.last


def aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def buffers_of(
    graph: Graph, kernels: tuple[Kernel, ...], lanes: Lanes, keep_routing: bool = False
) -> list[Buffer]:
    """Every buffer that needs a place: results that do not leave, and scratch."""
    step = {node: i for i, node in enumerate(graph.nodes)}
    last: dict[tuple[Node, int], int] = {}
    for node in graph.nodes:
        for operand in node.operands:
            if operand.op != "constant" and node.op not in ("reshape", "result"):
                last[root_of(operand)] = step[node]
    if keep_routing:
        last.update({(node, 1): len(step) for node in graph.nodes if node.op == "top_k"})
    leaving = {root_of(node) for node in graph.outputs}
    found = []
    for node in graph.nodes:
        if "kernel" not in node.notes:
            continue
        for index, type in enumerate(node.types):
            if (node, index) not in leaving:
                end = last.get((node, index), step[node])
                found.append(Buffer((node.name, index), _bytes(type), step[node], end))
        scratch = kernel_of(node, kernels).scratch(spec_of(node), lanes)
        for index, tensor in enumerate(scratch):
            key = node.name, -1 - index
            found.append(Buffer(key, _tensor_bytes(tensor), step[node], step[node]))
    return found


def lower_bound(buffers: Sequence[Buffer]) -> int:
    """The most bytes alive at one step: no plan can need less."""
    steps = {buffer.first for buffer in buffers}
    return max(
        (sum(aligned(b.bytes) for b in buffers if b.first <= s <= b.last) for s in steps), default=0
    )


def first_fit(buffers: Sequence[Buffer]) -> dict[tuple[str, int], int]:
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


def plan(buffers: Sequence[Buffer], tries: int = 400) -> tuple[dict[tuple[str, int], int], int]:
    """Offsets and the arena's bytes. Deterministic: the climb is seeded."""
    size = {b.key: aligned(b.bytes) for b in buffers}

    def height(order: Sequence[Buffer]) -> tuple[int, dict[tuple[str, int], int]]:
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


def _bytes(type: Type) -> int:
    return _tensor_bytes(Tensor(type.dtype, type.shape, type.layout))


def _tensor_bytes(tensor: Tensor) -> int:
    stored = storage(tensor)
    return Type(stored.dtype, stored.shape).bytes


@dataclass(frozen=True)
class PlanMemory:
    """``keep_routing`` keeps the chosen experts readable in the arena after a run."""

    kernels: tuple[Kernel, ...]
    lanes: Lanes
    keep_routing: bool = False

    name = "plan_memory"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        buffers = buffers_of(graph, self.kernels, self.lanes, self.keep_routing)
        offsets, arena = plan(buffers)

        def place(node: Node) -> Node:
            if "kernel" not in node.notes:
                return node
            at = tuple(offsets.get((node.name, i), -1) for i in range(len(node.types)))
            scratch: list[int] = []
            while (node.name, -1 - len(scratch)) in offsets:
                scratch.append(offsets[node.name, -1 - len(scratch)])
            notes = {"scratch": tuple(scratch)} if scratch else {}
            return node.with_notes(at=at, **notes)

        notes = {
            **graph.notes,
            "arena_bytes": arena,
            "arena_lower_bound": lower_bound(buffers),
        }
        return replace(rebuild(graph, place), notes=notes)
