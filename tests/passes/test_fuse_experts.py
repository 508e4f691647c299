"""fuse_experts: a mixture with one rotation in and at most one out is one op."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, make
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.passes.base import Pass, load
from butterflyc.passes.fuse_experts import FuseExperts
from butterflyc.passes.quantize_activations import QuantizeActivations

from .graphs import Mixture, Rotation, build, mixtures, some
from .meaning import Golden, assert_same_meaning, check_golden, count, inputs_of

PREPARE = (
    "canonicalize",
    "merge_rotations",
    "fold_permutations",
    "share_expert_matmul",
    "combine_before_down",
)


def prepared(graph: Graph, *more: Pass, lanes: int = 1) -> Graph:
    """``graph`` after the passes that run before this one, and ``more``."""
    passes = [load(name)() for name in PREPARE]
    passes.insert(2, load("spread-rotations")(lanes))
    for apply in (*passes, *more):
        graph = apply(graph)
    return graph


def test_golden(golden: Golden) -> None:
    """The ViT form on floats; and without a second rotation, on codes."""
    float_form = prepared(build(Mixture(up_bias=True, down_bias="weighted")))
    mixture = Mixture(k=1, rotation_in=Rotation(8), rotation_out=None, activation="relu")
    codes = prepared(build(mixture), load("quantize-activations")())
    check_golden(golden, FuseExperts(), float_form, codes)


@pytest.mark.parametrize("bits", [7, 8])
def test_codes_keep_their_bits(bits: int) -> None:
    """On codes of 7 or 8 bits, the fused op has these, and means the same."""
    graph = build(Mixture(k=1, rotation_in=Rotation(8), rotation_out=None))
    before = prepared(graph, QuantizeActivations(bits))
    fused = FuseExperts()(before)
    found = [node["activation_bits"] for node in fused.nodes if node.op == "butterfly_experts"]
    assert found == [bits]
    assert_same_meaning(before, fused)


def simple(mixture: Mixture) -> bool:
    """Whether one rotation of 4 x 4 blocks a side, or less, is enough."""
    sides = (mixture.rotation_in, mixture.rotation_out)
    return all(rotation is None or rotation.layers <= 2 for rotation in sides)


@some
@given(mixtures(), st.integers(0, 99), st.sampled_from([1, 4]))
def test_means_the_same(mixture: Mixture, seed: int, lanes: int) -> None:
    """Any mixture computes the same after all exact passes."""
    graph = build(mixture, np.random.default_rng(seed))
    before = prepared(graph, lanes=lanes)
    fused = FuseExperts()(before)
    assert_same_meaning(before, fused)
    assert_same_meaning(graph, fused)


@some
@given(mixtures(), st.sampled_from([1, 4]), st.booleans())
def test_mixtures_of_two_layers_fuse(mixture: Mixture, lanes: int, quantized: bool) -> None:
    """With L <= 2 a mixture ends as one op, in floats and in codes, if W_hat cannot come later."""
    assume(simple(mixture))
    combines_early = mixture.rotation_out is None and mixture.activation == "none"
    pads_late = mixture.activation == "sigmoid" and mixture.rotation_out is not None
    summand_late = mixture.down == "absent" and mixture.rotation_out is None
    assume(not (combines_early or pads_late or summand_late))
    more = [load("quantize_activations")()] if quantized else []
    fused = FuseExperts()(prepared(build(mixture, np.random.default_rng(0)), *more, lanes=lanes))
    assert count(fused)["butterfly_experts"] == 1
    assert not {"rotate", "combine"} & set(count(fused))


@pytest.mark.parametrize("after", [False, True])
def test_quantized_form_is_bit_equal(after: bool) -> None:
    """The fused op on codes computes the very bits of the ops that it replaces."""
    mixture = Mixture(
        activation_after=after, up_bias=True, rotation_in=Rotation(8, shuffle_first=True)
    )
    graph = build(mixture, np.random.default_rng(0))
    before = prepared(graph, load("quantize_activations")())
    x = inputs_of(graph)
    assert np.array_equal(interpret(before, *x), interpret(FuseExperts()(before), *x))


def test_deeper_rotations_stay_unfused() -> None:
    """Two rotations on a side are left as they are."""
    graph = prepared(build(Mixture(width=16, rotation_in=Rotation(16, 3))))
    assert FuseExperts()(graph) == graph


def test_large_blocks_stay_unfused() -> None:
    """Blocks of 8 have no place in the op."""
    graph = build(Mixture(rotation_in=Rotation(8, 3)))
    for name, options in (("merge_rotations", {"max_block": 8}), ("share_expert_matmul", {})):
        graph = load(name)(**options)(graph)
    assert FuseExperts()(graph) == graph


def test_a_value_read_twice_stays_unfused() -> None:
    """A chain whose inside is an output too is not fused away."""
    graph = prepared(build(Mixture()))
    act = next(node for node in graph.nodes if node.op == "gelu")
    graph = replace(graph, outputs=(*graph.outputs, make("neg", act)))
    assert FuseExperts()(graph) == graph
