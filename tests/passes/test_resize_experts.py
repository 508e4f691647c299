"""resize_experts: the sizes of a graph with another number of experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.errors import UsageError
from butterflyc.compiler.ir import Graph, Type, input_node, rebuild, verify
from butterflyc.passes.arena import type_bytes
from butterflyc.passes.base import load
from butterflyc.passes.expert_parts import routed_layers
from butterflyc.passes.resize_experts import ResizeExperts

from .graphs import Mixture, build, mixtures, some
from .meaning import Golden, check_golden
from .test_tile_rows import fused


def shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """The shape of every node that has one result."""
    return {node.name: node.type.shape for node in graph.nodes if len(node.types) == 1}


def test_golden(golden: Golden) -> None:
    """Rotations, the router and its scores have five of what they had three of."""
    check_golden(golden, ResizeExperts(5), build(Mixture()))


@some
@given(mixtures(), st.integers(0, 4), st.integers(0, 9))
def test_any_mixture(mixture: Mixture, more: int, seed: int) -> None:
    """What has another shape had one of each expert; the first experts stay what they were."""
    before = build(mixture, np.random.default_rng(seed))
    count = mixture.k + more
    after = ResizeExperts(count)(before)
    verify(after)
    (layer,) = routed_layers(before)
    own = {node.name for node in (*layer.rotations, *layer.router, *layer.scores)}
    now = shapes(after)
    for name, shape in shapes(before).items():
        swapped = [*shape]
        if name in own:
            swapped[-1 if name == "scores" else 0] = count
        assert now[name] == tuple(swapped)
    kept = min(count, mixture.experts)
    for node in (*layer.rotations, *layer.router):
        held = after.value(after.find(node.name))
        assert np.array_equal(held[:kept], before.value(node)[:kept])
    assert ResizeExperts(mixture.experts)(before) == before


@some
@given(st.integers(2, 40), st.integers(2, 40))
def test_stand_ins_have_the_bytes_of_constants(count: int, other: int) -> None:
    """Of a lowered mixture too, by integers, where a constant may be packed."""
    lowered = fused(build(Mixture(), np.random.default_rng(3)))
    stands = ResizeExperts(other, stand_ins=True)(ResizeExperts(count, stand_ins=True)(lowered))
    there = ResizeExperts(other)(lowered)
    assert [node.types for node in stands.nodes] == [node.types for node in there.nodes]
    for node in stands.nodes:
        if node.op == "constant":
            assert stands.value(node).nbytes == type_bytes(node.type)


def test_a_packed_router_is_sized() -> None:
    """A panel of sixteen rows holds sixteen experts, and the next one takes another."""
    graph = load("narrow-constants")()(build(Mixture(), np.random.default_rng(0)))
    (layer,) = routed_layers(graph)
    (router,) = layer.router
    packed = Type("f32", router.type.shape, None, "panel16")
    sizes = []
    for count in (3, 16, 17):
        wide = ResizeExperts(count, stand_ins=True)(_retyped(graph, router.name, packed))
        sizes.append(wide.value(wide.find(router.name)).nbytes)
    assert sizes == [16 * 8 * 4, 16 * 8 * 4, 32 * 8 * 4]


def _retyped(graph: Graph, name: str, type: Type) -> Graph:
    return rebuild(graph, lambda n: replace(n, types=(type,)) if n.name == name else n)


def test_fewer_than_a_row_goes_to() -> None:
    """Two experts a row cannot be chosen from one."""
    with pytest.raises(UsageError, match="1 experts where a row goes to 2") as caught:
        ResizeExperts(1)(build(Mixture()))
    assert caught.value.help == "2 experts are the fewest"


def test_a_graph_without_experts_stays() -> None:
    """Nothing is routed, so nothing changes."""
    x = input_node("x", Type("f32", (2,)))
    graph = Graph("g", (x,), (x,))
    assert ResizeExperts(4)(graph) == graph
