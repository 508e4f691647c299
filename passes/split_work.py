"""Deal the work of each op out to several threads, and say where they must wait for each other.

    %1 = layer_norm(%x, ..) : f32[65, 256] @ {at = [0]}
    %2 = linear(%1, %w) : f32[65, 768] @ {at = [66560]}
    %3 = qkv_attention(%2) : f32[1, 65, 256] @ {at = [0]}
    ->
    %1 = layer_norm(%x, ..) : f32[65, 256] @ {at = [0], phase = 0, split = 65}
    %2 = linear(%1, %w) : f32[65, 768] @ {at = [66560], phase = 0, split = 65}
    %3 = qkv_attention(%2) : f32[1, 65, 256] @ {at = [0], phase = 1, split = 4}

Parts are as `compiler.ir.parts` allows; an op without them is computed whole by one thread. Within
a phase each part goes through all ops and waits for no other: so an op begins a new phase where a
part of it would read what another part of the phase writes, or write what another reads or writes.
That is told from the bytes of the arena, which also counts memory that is used again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, product
from math import prod
from typing import Any

import numpy as np

from ..compiler.ir import Graph, Node, rebuild
from ..compiler.ir.parts import Split, part_types, split_of
from ..compiler.ir.schedule import steps_of
from ..compiler.ir.views import root_of
from ..kernels.lanes import Lanes
from ..kernels.record import Kernel, Spec
from ..kernels.ternary_product import FLOAT_PANEL_ROWS
from .arena import aligned, tensor_bytes
from .select_kernels import kernel_of, spec_of, spec_with

HEADS_KERNEL = "attention_heads"
# Products of floats that are added up in another order where there are few rows.
BY_PANEL = ("butterfly_experts", "ternary_matmul")
# Bytes of a memory from a first to behind a last one, for each part.
Span = tuple[str, np.ndarray, np.ndarray]


def part_of(node: Node, some: int, kernels: tuple[Kernel, ...]) -> tuple[Kernel, Spec]:
    """What computes ``some`` of the rows of ``node``, with the bits that it has as a whole."""
    split = split_of(node)
    assert split is not None, f"'{node.name}' is not computed in parts"
    types = part_types(node, split, some)
    if split.heads:
        (kernel,) = (each for each in kernels if each.name == HEADS_KERNEL)
        return kernel, spec_with(node, types, first_head=0, part_heads=some)
    kernel, spec = kernel_of(node, kernels), spec_with(node, types)
    if kernel.name in BY_PANEL and not node.attributes.get("activation_bits"):
        experts = kernel.name == "butterfly_experts"
        rows = prod(node.operands[5 if experts else 0].type.shape[: None if experts else -1])
        if rows >= spec.parameter("panel_rows", FLOAT_PANEL_ROWS):
            return kernel, spec.with_parameters({**dict(spec.parameters), "panel_rows": 0})
    return kernel, spec


def sizes_of(node: Node, threads: int) -> tuple[tuple[int, int], ...]:
    """(how many parts, rows of each) of a node that is ``split``."""
    split = split_of(node)
    assert split is not None, f"'{node.name}' is not computed in parts"
    return split.sizes(threads)


@dataclass(frozen=True)
class _Memory:
    """What each part of a node reads and writes, of the memory that others write too."""

    reads: tuple[Span, ...]
    writes: tuple[Span, ...]

    def meets(self, later: _Memory) -> bool:
        """Whether a part of ``later`` must wait for another part of this."""
        pairs = (
            *product(self.writes, later.reads + later.writes),
            *product(self.reads, later.writes),
        )
        return any(_overlap(a, b) for a, b in pairs)


def _overlap(a: Span, b: Span) -> bool:
    """Whether a part of ``a`` and another part of ``b`` share a byte."""
    if a[0] != b[0]:
        return False
    shared = (a[1][:, None] < b[2]) & (b[1] < a[2][:, None])
    np.fill_diagonal(shared, False)
    return bool(shared.any())


class _Phases:
    """The phase of each op: the one that is open, or a new one."""

    def __init__(self, graph: Graph, threads: int) -> None:
        self._threads = threads
        self._outputs = {root_of(node): f"out {i}" for i, node in enumerate(graph.outputs)}
        self._open: list[_Memory] = []
        self.number = 0

    def add(self, node: Node, split: Split | None, scratch: tuple[int, ...]) -> int:
        """``scratch`` are the bytes of each scratch buffer of an op that is computed whole."""
        memory = self._memory(node, split, scratch)
        if any(earlier.meets(memory) for earlier in self._open):
            self.number += 1
            self._open = []
        self._open.append(memory)
        return self.number

    def _memory(self, node: Node, split: Split | None, scratch: tuple[int, ...]) -> _Memory:
        reads = [
            self._span(*root_of(x), split, split is not None and i in split.by_rows)
            for i, x in enumerate(node.operands)
            if root_of(x)[0].op not in ("input", "constant")
        ]
        by_rows = split is not None and not split.heads
        writes = [self._span(node, i, split, by_rows) for i in range(len(node.types))]
        if split is None:  # parts have their scratch elsewhere, each its own
            at: Any = node.notes.get("scratch", ())
            for start, size in zip(at, scratch, strict=True):
                writes.append(("arena", *self._whole(start, size, None)))
        return _Memory(tuple(reads), tuple(writes))

    def _span(self, root: Node, index: int, split: Split | None, by_rows: bool) -> Span:
        memory = self._outputs.get((root, index), "arena")
        start = int(root.notes["at"][index]) if memory == "arena" else 0  # type: ignore[index]
        size = root.types[index].bytes
        if split is None or not by_rows:
            return memory, *self._whole(start, size, split)
        spans = np.array(split.spans(self._threads)) * (size // split.rows) + start
        empty = spans[:, 0] == spans[:, 1]
        spans[empty] = 0
        return memory, spans[:, 0], spans[:, 1]

    def _whole(self, start: int, size: int, split: Split | None) -> tuple[np.ndarray, np.ndarray]:
        """All of it, for each part that there is; for the first one where there are none."""
        parts = min(self._threads, split.rows) if split else 1
        there = np.arange(self._threads) < parts
        return np.where(there, start, 0), np.where(there, start + size, 0)


@dataclass(frozen=True)
class SplitWork:
    """For ``threads`` threads: also what each part has as scratch, behind the arena."""

    kernels: tuple[Kernel, ...]
    lanes: Lanes
    threads: int

    name = "split_work"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        phases, notes, part_bytes = _Phases(graph, self.threads), dict[str, dict[str, Any]](), 0
        for node in (node for step in steps_of(graph) for node in step.nodes):
            split, scratch = self._split(node), self._scratch(node)
            found: dict[str, Any] = {"phase": phases.add(node, split, scratch)}
            if split is not None:
                found["split"] = split.rows
                ends = [0, *accumulate(map(aligned, self._part_scratch(node)))]
                part_bytes = max(part_bytes, ends[-1])
                if len(ends) > 1:
                    found["part_scratch"] = tuple(ends[:-1])
            notes[node.name] = found
        changed = rebuild(graph, lambda node: node.with_notes(**notes.get(node.name, {})))
        kept = {**graph.notes, "threads": self.threads, "part_bytes": part_bytes}
        return replace(changed, notes=kept)

    def _split(self, node: Node) -> Split | None:
        """How ``node`` is computed in parts, if its kernel can."""
        split = split_of(node) if "kernel" in node.notes else None
        if split is None:
            return None
        parts = (part_of(node, rows, self.kernels) for _, rows in split.sizes(self.threads))
        fits = all(kernel.supports(spec, self.lanes) for kernel, spec in parts)
        return split if fits else None

    def _scratch(self, node: Node) -> tuple[int, ...]:
        if "kernel" not in node.notes:
            return ()
        kernel = kernel_of(node, self.kernels)
        return tuple(map(tensor_bytes, kernel.scratch(spec_of(node), self.lanes)))

    def _part_scratch(self, node: Node) -> Iterator[int]:
        """The bytes of each scratch buffer of the largest part."""
        parts = [part_of(node, rows, self.kernels) for _, rows in sizes_of(node, self.threads)]
        buffers = [kernel.scratch(spec, self.lanes) for kernel, spec in parts]
        for alike in zip(*buffers, strict=True):
            yield max(map(tensor_bytes, alike))
