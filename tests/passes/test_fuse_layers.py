"""fuse_layers: a mixture whose rotations are Givens rotations, with what follows, is one op."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph
from butterflyc.compiler.ir.ops.layer import IN_ORDER
from butterflyc.passes.base import load
from butterflyc.passes.fuse_layers import FuseLayers
from butterflyc.passes.givens import Order, blocks_of, pairs_of
from butterflyc.passes.quantize_activations import QuantizeActivations

from .graphs import Mixture, Rotation, build, mixtures, some
from .meaning import Golden, assert_same_meaning, check_golden, count
from .test_fuse_experts import prepared


def fused(graph: Graph, *more: QuantizeActivations) -> Graph:
    """``graph`` as this pass gets it."""
    return load("fuse-experts")()(prepared(graph, *more))


def quarter_turns(graph: Graph) -> Graph:
    """``graph`` with blocks that turn by a right angle, whose numbers are the same everywhere."""
    constants = dict(graph.constants)
    for digest, array in graph.constants.items():
        if array.ndim == 4:
            turns = np.tile([0.0, 1.0], (*array.shape[:2], 4, 1))
            constants[digest] = blocks_of(turns, IN_ORDER)
    return Graph(graph.name, graph.inputs, graph.outputs, constants, graph.notes)


def test_golden(golden: Golden) -> None:
    """The ViT form with its linear map behind; and without a second rotation, on codes."""
    whole = fused(build(Mixture()))
    alone = Mixture(k=1, rotation_in=Rotation(8), rotation_out=None, activation="relu")
    coded = fused(build(alone), QuantizeActivations())
    check_golden(golden, FuseLayers(), quarter_turns(whole), quarter_turns(coded))


@some
@given(mixtures(), st.integers(0, 99), st.booleans())
def test_means_the_same(mixture: Mixture, seed: int, quantized: bool) -> None:
    """Any mixture computes the same."""
    before = fused(
        build(mixture, np.random.default_rng(seed)), *([QuantizeActivations()] * quantized)
    )
    assert_same_meaning(before, FuseLayers()(before))


@st.composite
def small(draw: st.DrawFn) -> Mixture:
    """Any mixture of rotations of at most two layers, of which nothing is stripped."""
    sides = []
    for width in (draw(st.sampled_from([4, 8, 16])), draw(st.sampled_from([4, 8, 32]))):
        shuffle = draw(st.sampled_from(["deinterleave", "interleave", "stride"]))
        choices = shuffle, draw(st.booleans()), draw(st.booleans())
        sides.append(Rotation(width, draw(st.integers(1, 2)), *choices))
    after = sides[1] if draw(st.booleans()) else None
    widths = {"width": sides[0].width, "hidden": sides[1].width}
    return replace(draw(mixtures()), **widths, rotation_in=sides[0], rotation_out=after)


@some
@given(small(), st.integers(0, 99))
def test_mixtures_of_two_layers_are_layers(mixture: Mixture, seed: int) -> None:
    """With L <= 2 and nothing stripped no `butterfly_experts` stays."""
    before = fused(build(mixture, np.random.default_rng(seed)))
    after = FuseLayers()(before)
    assert count(after)["butterfly_experts"] == 0
    assert count(after)["butterfly_layer"] == count(before)["butterfly_experts"]
    assert_same_meaning(before, after)


HALVES = st.permutations(range(4)).map(tuple)


@settings(max_examples=30)
@given(HALVES, HALVES, st.integers(1, 4), st.integers(0, 99), st.sampled_from([1e-9, 0.01, 1, 3]))
def test_pairs_turn_as_their_blocks(
    taken: Order, given: Order, groups: int, seed: int, size: float
) -> None:
    """Blocks made of Givens rotations by any angles are found to be so."""
    angles = np.random.default_rng(seed).normal(0, size, (3, groups, 4))
    blocks = blocks_of(np.stack([np.cos(angles), np.sin(angles)], -1), taken + given)
    found = pairs_of(blocks)
    assert found is not None
    np.testing.assert_allclose(blocks_of(*found), blocks, atol=1e-12)


@pytest.mark.parametrize("angle", [0, np.pi / 2, np.pi, -np.pi / 2])
def test_quarter_turns_are_found(angle: float) -> None:
    """Angles whose cosine or sine is nothing leave rows of zeros, and are found as well."""
    for first in (0, np.pi / 2, np.pi):
        angles = np.array([first, angle, angle, first]).reshape(1, 1, 4)
        blocks = blocks_of(np.stack([np.cos(angles), np.sin(angles)], -1), IN_ORDER)
        found = pairs_of(blocks)
        assert found is not None
        np.testing.assert_allclose(blocks_of(*found), blocks, atol=1e-12)


GENERAL = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]


def test_other_blocks_are_not_taken_for_rotations() -> None:
    """General orthogonal blocks, one among rotations, reflections, three groups have no pairs."""
    rotations = np.tile(np.eye(4), (2, 40, 1, 1))
    assert pairs_of(rotations) is not None
    rotations[1, 39] = GENERAL
    threes, reflections = (
        np.tile(np.eye(2), (1, 3, 1, 1)),
        np.tile(np.diag([1.0, -1]), (1, 2, 1, 1)),
    )
    for blocks in (GENERAL[None, None], rotations, threes, reflections):
        assert pairs_of(blocks) is None


def test_what_has_no_pairs_stays() -> None:
    """A layer with other blocks on one side is left as it is."""
    graph = fused(build(Mixture(), np.random.default_rng(0)))
    (node,) = (node for node in graph.nodes if node.op == "butterfly_experts")
    digest = str(node.operands[1]["digest"])
    other = np.broadcast_to(GENERAL, graph.constants[digest].shape)
    constants = {**graph.constants, digest: other}
    off = Graph(graph.name, graph.inputs, graph.outputs, constants, graph.notes)
    assert FuseLayers()(off) is off
