"""share_expert_matmul: k chains become one on all (token, chosen expert) rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Type, input_node, make
from butterflyc.passes.canonicalize import Canonicalize
from butterflyc.passes.fold_permutations import FoldPermutations
from butterflyc.passes.merge_rotations import MergeRotations
from butterflyc.passes.share_expert_matmul import ShareExpertMatmul

from .graphs import Builder, Mixture, Rotation, build, mixtures, some
from .meaning import Golden, assert_same_meaning, check_golden, count


def test_golden(golden: Golden) -> None:
    """Two chains become one; one chain does too; a bias that is added once stays behind."""
    two = Mixture(rotation_in=Rotation(8, 1), rotation_out=Rotation(16, 1), down_bias="once")
    one = Mixture(k=1, rotation_in=Rotation(8, 1), rotation_out=None)
    check_golden(golden, ShareExpertMatmul(), build(two), build(one))


@some
@given(mixtures(), st.integers(0, 99), st.booleans())
def test_means_the_same(mixture: Mixture, seed: int, folded: bool) -> None:
    """Any mixture is shared, and computes the same, with its orders folded before or not."""
    graph = build(mixture, np.random.default_rng(seed))
    if folded:
        graph = FoldPermutations()(MergeRotations()(graph))
    shared = ShareExpertMatmul()(graph)
    assert_same_meaning(graph, shared)
    assert count(shared)["combine"] == 1
    products = mixture.down == "ternary"
    assert count(shared)["ternary_matmul"] == 1 + products


@some
@given(mixtures(), st.integers(0, 99))
def test_after_canonicalize(mixture: Mixture, seed: int) -> None:
    """Equal nodes of the chains may be one before: where k = 1, the gates are no slice."""
    graph = Canonicalize()(build(mixture, np.random.default_rng(seed)))
    shared = ShareExpertMatmul()(graph)
    assert_same_meaning(graph, shared)
    assert count(shared)["combine"] == 1


def test_residual_and_order_of_summands() -> None:
    """The chains are found among other summands, whatever their order."""
    graph = build(Mixture(k=3), np.random.default_rng(0))
    mixed = graph.outputs[0]
    (first, second), third = mixed.operands[0].operands, mixed.operands[1]
    total = make("add", make("add", third, graph.inputs[0]), make("add", second, first), name="y")
    graph = Graph("g", graph.inputs, (total,), graph.constants)
    shared = ShareExpertMatmul()(graph)
    assert_same_meaning(graph, shared)
    assert count(shared)["combine"] == 1
    assert shared.outputs[0].name == "y"


@pytest.mark.parametrize("change", ["activation", "weights", "no slot", "read twice"])
def test_chains_that_differ_stay(change: str) -> None:
    """Chains that are not the same computation, or not all there, stay apart."""
    b = Builder(np.random.default_rng(0))
    h = input_node("h", Type("f32", (3, 4)))
    gates, experts = (input_node(n, Type(t, (3, 2))) for n, t in (("g", "f32"), ("e", "i64")))
    blocks, w = b.numbers("blocks", 2, 2, 2, 2), b.numbers("w", 4, 4)
    chains = []
    for slot in range(2):
        cut = {"axis": 1, "start": slot, "stop": slot + 1}
        number = make("reshape", make("slice", experts, **cut), shape=(3,))
        x = make("rotate", h, blocks, number)
        other = slot == 1 and change == "weights"
        x = make("linear", x, b.numbers("v", 4, 4) if other else w)
        x = make("relu" if slot == 1 and change == "activation" else "gelu", x)
        chains.append(make("mul", x, make("slice", gates, **cut)))
    total = chains[0] if change == "no slot" else make("add", *chains)
    outputs = (total, chains[1]) if change == "read twice" else (total,)
    graph = Graph("g", (h, gates, experts), outputs, b.store)
    assert ShareExpertMatmul()(graph) == graph


def test_a_row_factor_is_no_mixture() -> None:
    """x [T, n] times [T, 1] without a rotation is not taken for one chosen expert."""
    h = input_node("h", Type("f32", (3, 4)))
    graph = Graph("g", (h,), (make("mul", h, make("slice", h, axis=1, stop=1)),), {})
    assert ShareExpertMatmul()(graph) == graph
