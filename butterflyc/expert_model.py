"""A ButterflyViT of random weights, captured once and lowered with any number of experts.

How many bytes a model takes is a matter of its sizes, so that none need be trained. No two of its
constants are alike, as in a trained one: of equal ones only one would be kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .build import Progress, family_of, lower
from .compiler.errors import Unsupported, UsageError
from .compiler.ir import Graph, verify
from .passes.arena import aligned, buffers_of
from .passes.base import Pass
from .passes.budget import SIZE, SPEED, Budgets
from .passes.expert_parts import routed_layers
from .passes.plan_memory import lower_bound
from .passes.resize_experts import ResizeExperts
from .passes.select_kernels import Tuned, untuned
from .source import Source
from .targets.code_size import Code, estimated
from .targets.memories import sized
from .targets.placement import MEMORIES, Placement, place, place_in_one
from .targets.registry import Core, Memory

if TYPE_CHECKING:
    from .models.butterfly import ButterflyConfig
    from .models.vit import ViTConfig

NAME = "vit"
CAPTURED = 8  # experts, unless a token goes to more; as the papers have them
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
    captured model as it was lowered, but for its arena.
    """

    core: Core
    mode: str
    passes: tuple[Pass, ...]
    budgets: Budgets
    tuned: Tuned
    captured: Graph
    packed: Graph
    memory: Memory | None = None

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
        samples = [(_images(self.captured.inputs[0].type.shape),)]
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
        family, planned = family_of(self.core), self.planned(graph)
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


def subject_of(
    config: ViTConfig,
    core: Core,
    mode: str,
    budgets: Budgets,
    memory: Memory | None = None,
    tuned: Tuned = untuned,
    progress: Progress = lambda _: None,
) -> Subject:
    """A model of ``config``, whose number of experts does not matter, captured and lowered.

    Raises Unsupported where a layer is not recognised, or `lower` does.
    """
    source = replace(_source(config), budgets=budgets)
    built = lower(source, core, mode, NAME, progress=progress, tuned=tuned)
    whole = [layer for layer in built.layers if layer.recognised == "full"]
    if len(whole) < config.layers:
        raise Unsupported(f"{len(whole)} of {config.layers} layers were recognised in full")
    stages = built.stages
    captured, packed = stages["recognise"], stages[LAST]
    return Subject(core, mode, built.passes, budgets, tuned, captured, packed, memory)


def variants(
    subject: Subject, config: ViTConfig, progress: Progress = lambda _: None
) -> Iterator[tuple[str, Subject]]:
    """What may take less memory: the option of `plan` that asks for it, and the model by it."""
    budgets = subject.budgets
    if subject.mode == "int8":
        kinds = {None: ("i16", "i8"), "i16": ("i8",)}.get(budgets.angles, ())
        asked = [(f"--angles {kind}", replace(budgets, angles=kind)) for kind in kinds]
        if budgets.prefer == SPEED:
            asked.append(("--prefer size", replace(budgets, prefer=SIZE)))
        for option, other in asked:
            progress(f"trying {option}")
            yield option, subject.by(other)
    psram = next((m for m in subject.core.memories if m.name == "psram" and m.optional), None)
    if psram and subject.core.memory("psram") is None:
        size = f"{psram.nominal >> 20}M"
        with_psram = sized(subject.core, {"psram": size}, MEMORIES)
        yield f"--psram {size}", replace(subject, core=with_psram)
    mlp = butterfly_of(config)
    if mlp.down == "float":
        progress("trying --down ternary")
        ternary = replace(config, mlp=replace(mlp, down="ternary"))
        core, mode, memory, tuned = subject.core, subject.mode, subject.memory, subject.tuned
        yield "--down ternary", subject_of(ternary, core, mode, budgets, memory, tuned, progress)


def butterfly_of(config: ViTConfig) -> ButterflyConfig:
    """The layers with experts of ``config``. Raises UsageError if it has others."""
    from .models.butterfly import ButterflyConfig

    if not isinstance(config.mlp, ButterflyConfig):
        raise UsageError(
            f"a ViT whose MLP is a {type(config.mlp).__name__}",
            help="give one whose mlp is a ButterflyConfig: experts that share a matrix",
        )
    return config.mlp


def _source(config: ViTConfig) -> Source:
    import torch

    from .compiler.capture.arguments import Arguments
    from .models.vit import ViT

    mlp = butterfly_of(config)
    mlp = replace(mlp, angle_std=1.0, experts=max(CAPTURED, mlp.top_k))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViT(replace(config, mlp=mlp)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.min() == parameter.max():  # as norms and biases are at the start
                    parameter.add_(torch.randn_like(parameter) * 0.02)
    images = _images((1, config.channels, config.image, config.image))
    return Source(model, Arguments.of((torch.from_numpy(images),)), images)


def _images(shape: tuple[int, ...]) -> np.ndarray:
    """What scales are chosen by."""
    return np.random.default_rng(0).random(shape, np.float32)
