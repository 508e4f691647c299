"""The passes behind fusion: precision, kernels, packing, memory, and routing from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Type, constant, input_node, make, result
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.kernels import all_kernels
from butterflyc.kernels.lanes import Lanes
from butterflyc.passes.arena import buffers_of
from butterflyc.passes.base import Pass, load
from butterflyc.passes.force_routing import ForceRouting
from butterflyc.passes.narrow_constants import NarrowConstants
from butterflyc.passes.pack_weights import PackWeights
from butterflyc.passes.plan_memory import PlanMemory
from butterflyc.passes.select_kernels import SelectKernels

from .graphs import Mixture, build, mixtures, some
from .meaning import Golden, assert_same_meaning, check_golden, inputs_of

LANES = Lanes()
FUSE = (
    "canonicalize",
    "merge_rotations",
    "fold_permutations",
    "share_expert_matmul",
    "combine_before_down",
    "fuse_experts",
)


@dataclass(frozen=True)
class Shown:
    """A pass with a short repr: golden files need not list every kernel."""

    inner: Pass

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def exact(self) -> bool:
        return self.inner.exact

    def __call__(self, graph: Graph) -> Graph:
        return self.inner(graph)

    def __repr__(self) -> str:
        return type(self.inner).__name__


def selected() -> tuple[Pass, Pass, Pass]:
    kernels = all_kernels()
    return (
        SelectKernels(kernels, LANES),
        PackWeights(kernels, LANES),
        PlanMemory(kernels, LANES, keep_routing=True),
    )


def fused(graph: Graph) -> Graph:
    for name in FUSE:
        graph = load(name)()(graph)
    return graph


def routed() -> Graph:
    """A layer with its router: scores, top-2 of them, the mixture of what they choose."""
    store: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(0)
    x = input_node("x", Type("f32", (3, 8)))
    gate = constant(store, rng.standard_normal((4, 8)).astype(np.float32), "gate.weight")
    blocks = constant(store, rng.standard_normal((4, 4, 2, 2)), "blocks")
    scores = make("linear", x, gate, name="scores", source="layer.py:3")
    top = make("top_k", scores, k=2, name="top", source="layer.py:4")
    rows = make("reshape", x, shape=(3, 1, 8))
    turned = make("rotate", rows, blocks, result(top, 1), name="turned", source="layer.py:5")
    y = make("combine", turned, result(top, 0), name="y", source="layer.py:6")
    return Graph("layer", (x,), (y,), store)


def test_golden_narrow_constants(golden: Golden) -> None:
    """Blocks in double precision become single where they are read in single."""
    check_golden(golden, NarrowConstants(), routed())


def test_golden_select_kernels(golden: Golden) -> None:
    """Each op that computes gets its kernel, views none."""
    check_golden(golden, Shown(selected()[0]), NarrowConstants()(routed()))


def test_golden_pack_weights(golden: Golden) -> None:
    """Constants take the layout that their kernel wants."""
    graph = selected()[0](NarrowConstants()(routed()))
    check_golden(golden, Shown(selected()[1]), graph)


def test_golden_plan_memory(golden: Golden) -> None:
    """Results get offsets, the graph its arena; the output leaves and needs no place."""
    graph = NarrowConstants()(routed())
    select, pack, plan = selected()
    check_golden(golden, Shown(plan), pack(select(graph)))


def test_golden_force_routing(golden: Golden) -> None:
    """The choice of experts becomes an input, its gates are gathered."""
    check_golden(golden, ForceRouting(), routed())


@some
@given(mixtures(), st.integers(0, 99))
def test_they_all_mean_the_same(mixture: Mixture, seed: int) -> None:
    """Narrowing, selecting, packing and planning change no result; places do not overlap."""
    before = fused(build(mixture, np.random.default_rng(seed)))
    graph = NarrowConstants()(before)
    assert_same_meaning(before, graph, 1e-6)  # it rounds constants once
    narrowed = graph
    for step in selected():
        graph = step(graph)
        assert_same_meaning(narrowed, graph)
    check_places(graph)


def check_places(graph: Graph) -> None:
    """Buffers that live at the same time lie apart and inside the arena."""
    kernels = all_kernels()
    at: dict[Any, int] = {}
    for node in graph.nodes:
        places: Any = node.notes.get("at", ())
        at |= {(node.name, i): offset for i, offset in enumerate(places) if offset >= 0}
        scratch: Any = node.notes.get("scratch", ())
        at |= {(node.name, -1 - i): offset for i, offset in enumerate(scratch)}
    buffers = buffers_of(graph, kernels, LANES, keep_routing=True).own
    assert {buffer.key for buffer in buffers} == set(at)
    for i, a in enumerate(buffers):
        assert at[a.key] + a.bytes <= graph.notes["arena_bytes"]  # type: ignore[operator]
        for b in buffers[:i]:
            apart = at[a.key] + a.bytes <= at[b.key] or at[b.key] + b.bytes <= at[a.key]
            assert apart or not a.meets(b), (a, b)


@given(st.integers(0, 2**16))
def test_forced_with_its_own_choice_nothing_changes(seed: int) -> None:
    """A graph that is given the experts it would choose computes the same."""
    graph = routed()
    forced = ForceRouting()(graph)
    (x,) = inputs_of(graph, seed)
    chosen: list[np.ndarray] = []
    (wanted,) = interpret(
        graph, x, observe=lambda n, v: chosen.append(v[1]) if n.op == "top_k" else None
    )
    np.testing.assert_array_equal(interpret(forced, x, *chosen)[0], wanted)
