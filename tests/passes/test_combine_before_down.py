"""combine_before_down: what the experts share comes after their sum, once a token."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Node, Type, input_node, make
from butterflyc.passes.combine_before_down import CombineBeforeDown
from butterflyc.passes.fold_permutations import FoldPermutations
from butterflyc.passes.merge_rotations import MergeRotations
from butterflyc.passes.share_expert_matmul import ShareExpertMatmul

from .graphs import Builder, Mixture, Rotation, build, mixtures, some
from .meaning import Golden, assert_same_meaning, check_golden, count


def test_golden(golden: Golden) -> None:
    """W_down comes after the sum; its bias, weighted by the gates, becomes a product of rank 1."""
    mixture = Mixture(rotation_in=Rotation(8, 1), rotation_out=None, down_bias="weighted")
    check_golden(golden, CombineBeforeDown(), ShareExpertMatmul()(build(mixture)))


@some
@given(mixtures(), st.integers(0, 99), st.booleans())
def test_means_the_same(mixture: Mixture, seed: int, folded: bool) -> None:
    """Any mixture computes the same with its experts summed before what they share."""
    graph = build(mixture, np.random.default_rng(seed))
    if folded:
        graph = FoldPermutations()(MergeRotations()(graph))
    graph = ShareExpertMatmul()(graph)
    combined = CombineBeforeDown()(graph)
    assert_same_meaning(graph, combined)
    if mixture.down == "float":
        (down,) = (node for node in combined.nodes if node.op == "linear" and node.name != "scores")
        assert down.type.rank == 2


Body = Callable[[Builder, Node], Node]
SHARED: dict[str, Body] = {
    "linear": lambda b, v: make("linear", v, b.numbers("w", 5, 4)),
    "linear with bias": lambda b, v: make("linear", v, b.numbers("w", 5, 4), b.numbers("b", 5)),
    "ternary product": lambda b, v: make("ternary_matmul", v, b.ternary("w", 5, 4), b.numbers("s")),
    "shuffle": lambda b, v: make("shuffle", v, b.constant("order", np.array([2, -1, 0]), "i32")),
    "factor a channel": lambda b, v: make("mul", v, b.numbers("c", 4)),
    "one factor": lambda b, v: make("mul", b.numbers("c"), v),
    "summand a channel": lambda b, v: make("add", v, b.numbers("c", 4)),
    "two of them": lambda b, v: make(
        "linear", make("add", v, b.numbers("c", 4)), b.numbers("w", 5, 4), b.numbers("b", 5)
    ),
}
OWN: dict[str, Body] = {
    "an activation": lambda b, v: make("gelu", v),
    "linear with activation": lambda b, v: make(
        "linear", v, b.numbers("w", 5, 4), activation="relu"
    ),
    "a factor a slot": lambda b, v: make("mul", v, b.numbers("c", 2, 1)),
}


def mixed(body: Body) -> Graph:
    b = Builder(np.random.default_rng(3))
    v, gates = input_node("v", Type("f32", (3, 2, 4))), input_node("gates", Type("f32", (3, 2)))
    return Graph("g", (v, gates), (make("combine", body(b, v), gates, name="y"),), b.store)


@pytest.mark.parametrize("body", SHARED.values(), ids=SHARED)
def test_shared_maps_move(body: Body) -> None:
    """A linear map that is one for all experts is applied to their sum, and keeps the name."""
    graph = mixed(body)
    combined = CombineBeforeDown()(graph)
    assert_same_meaning(graph, combined)
    (total,) = (node for node in combined.nodes if node.op == "combine")
    assert total.operands[0].op == "input"
    assert combined.outputs[0].name == "y"


@pytest.mark.parametrize("body", OWN.values(), ids=OWN)
def test_own_maps_stay(body: Body) -> None:
    """What is no linear map, or differs between the slots, stays in front of the sum."""
    graph = mixed(body)
    assert CombineBeforeDown()(graph) == graph


def test_k_rows_become_one() -> None:
    """W_down has one row a token afterwards, where it had k."""
    graph = ShareExpertMatmul()(build(Mixture(k=3, rotation_out=None)))
    before, after = (
        next(node for node in g.nodes if node.op == "linear" and node.name != "scores").type.shape
        for g in (graph, CombineBeforeDown()(graph))
    )
    assert (before, after) == ((3, 3, 8), (3, 8))
    assert count(CombineBeforeDown()(graph))["combine"] == 1
