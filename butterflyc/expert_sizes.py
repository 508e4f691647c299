"""A model with any number of experts: lowered with them, or as foretold from one with others.

Where its parts go is what `targets.placement` says, with an arena that is planned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .compiler.ir import Graph, verify
from .passes.arena import aligned, buffers_of
from .passes.base import Pass
from .passes.budget import Budgets
from .passes.expert_parts import routed_layers
from .passes.plan_memory import lower_bound
from .passes.resize_experts import ResizeExperts
from .passes.select_kernels import Tuned
from .targets.code_size import Code, estimated
from .targets.placement import Placement, place, place_in_one
from .targets.registry import Core, Memory, family_of

LAST = "pack_weights"  # the last pass before the arena is planned: it fixes all but the arena


@dataclass(frozen=True)
class Sized:
    """A model with ``experts`` a layer, as ``graph`` without an arena; ``placed`` with it."""

    experts: int
    graph: Graph
    placed: Placement

    @property
    def owned(self) -> int:
        """Bytes of weights that belong to experts, as they lie in memory."""
        layers = routed_layers(self.graph)
        nodes = {node for layer in layers for node in (*layer.rotations, *layer.router)}
        digests = {str(node["digest"]) for node in nodes}
        return sum(aligned(self.graph.constants[digest].nbytes) for digest in digests)

    def used(self, memory: str) -> int:
        return self.placed.region(memory).used


@dataclass(frozen=True)
class Subject:
    """A model as it was captured, and the ``passes`` that lower it for ``core``.

    ``memory`` is where all goes if it is given; else the core's own memories. ``packed`` is the
    captured model as it was lowered, but for its arena. ``code`` is what was measured, if it was.
    """

    core: Core
    mode: str
    passes: tuple[Pass, ...]
    budgets: Budgets
    tuned: Tuned
    captured: Graph
    packed: Graph
    memory: Memory | None = None
    code: Code | None = None

    @cached_property
    def first(self) -> Sized:
        """The model as it was captured."""
        return self._sized(routed_layers(self.packed)[0].count, self.packed)

    def lowered(self, experts: int) -> Sized:
        """The model with so many experts a layer, by the passes that `compile` runs.

        Raises UsageError for fewer than a token goes to.
        """
        return self._sized(experts, _packed(ResizeExperts(experts)(self.captured), self.passes))

    def by(self, budgets: Budgets) -> Subject:
        """The captured model, lowered by other ``budgets``."""
        samples = [(images_of(self.captured.inputs[0].type.shape),)]
        family = family_of(self.core)
        passes = family.passes(self.core, self.mode, samples, budgets, tuned=self.tuned)
        packed = _packed(self.captured, passes)
        return replace(self, passes=passes, budgets=budgets, packed=packed)

    def predicted(self, base: Sized, experts: int) -> Sized:
        """The same where all passes do what they did for ``base``: its arena is planned anew."""
        return self._sized(experts, ResizeExperts(experts, stand_ins=True)(base.graph))

    def planned(self, graph: Graph) -> Graph:
        """``graph``, whose weights are packed, with an arena; a GPU's has none."""
        planners = [step for step in self.passes if step.name == "plan_memory"]
        return planners[0](graph) if planners else graph

    def placement(self, graph: Graph, code: Code | None = None) -> Placement:
        """Where the parts of a ``graph`` go, whose weights are packed; code is estimated.

        Of a GPU's activations only those that are alive at once are counted, and none of its code.
        """
        family, planned, code = family_of(self.core), self.planned(graph), code or self.code
        lanes = family.machine(self.core).lanes
        if self.memory is None:
            return place(planned, self.core, lanes, code or estimated(graph))
        if planned is graph:
            alive = lower_bound(buffers_of(graph, family.kernels(), lanes).own)
            return place_in_one(graph, self.core, alive, code or Code(0), self.memory)
        arena = int(planned.notes["arena_bytes"])  # type: ignore[arg-type]
        return place_in_one(planned, self.core, arena, code or estimated(graph), self.memory)

    def _sized(self, experts: int, graph: Graph) -> Sized:
        return Sized(experts, graph, self.placement(graph))


def _packed(graph: Graph, passes: Sequence[Pass]) -> Graph:
    """``graph`` after all ``passes`` but the planning of its arena."""
    for step in passes:
        graph = step(graph)
        if step.name == LAST:
            break
    verify(graph, after=LAST)
    return graph


def images_of(shape: tuple[int, ...]) -> np.ndarray:
    """What scales are chosen by."""
    return np.random.default_rng(0).random(shape, np.float32)
