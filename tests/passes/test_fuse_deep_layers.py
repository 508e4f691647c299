"""fuse_deep_layers: a mixture whose rotations have many layers, with what follows, is one op."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Node, make
from butterflyc.passes.fuse_deep_layers import FuseDeepLayers, block_layers
from butterflyc.passes.quantize_activations import QuantizeActivations

from .graphs import Mixture, Rotation, build, mixtures, some
from .meaning import Golden, assert_same_meaning, check_golden, count
from .test_fuse_experts import prepared
from .test_fuse_layers import GENERAL

OP = "butterfly_deep_layer"


def deep(graph: Graph, *more: QuantizeActivations) -> Graph:
    """``graph`` as this pass gets it."""
    return prepared(graph, *more)


def turns_of_nothing(graph: Graph) -> Graph:
    """``graph`` with blocks that turn by nothing, whose numbers are the same everywhere."""
    constants = {
        digest: np.broadcast_to(np.eye(array.shape[-1]), array.shape) if array.ndim == 4 else array
        for digest, array in graph.constants.items()
    }
    return Graph(graph.name, graph.inputs, graph.outputs, constants, graph.notes)


def layer_of(graph: Graph) -> Node:
    (node,) = (node for node in graph.nodes if node.op == OP)
    return node


def test_golden(golden: Golden) -> None:
    """The ViT form of three layers; and with padding that is stripped, on codes."""
    three = Mixture(width=8, rotation_in=Rotation(8, 3), rotation_out=Rotation(16, 3))
    padded = Mixture(
        width=8, hidden=12, k=1, rotation_in=Rotation(8, 3), rotation_out=Rotation(12, 3)
    )
    graphs = deep(build(three)), deep(build(padded), QuantizeActivations())
    check_golden(golden, FuseDeepLayers(), *map(turns_of_nothing, graphs))


@some
@given(mixtures(), st.integers(0, 99), st.booleans())
def test_means_the_same(mixture: Mixture, seed: int, quantized: bool) -> None:
    """Any mixture computes the same."""
    graph = build(mixture, np.random.default_rng(seed))
    before = deep(graph, *([QuantizeActivations()] * quantized))
    assert_same_meaning(before, FuseDeepLayers()(before))


@st.composite
def many_layers(draw: st.DrawFn) -> Mixture:
    """A mixture of one to six layers on either side, padded or not, of which one has over two."""
    sides = []
    for least in (3, 1):
        width = draw(st.integers(5, 40))
        shuffle = draw(st.sampled_from(["deinterleave", "interleave", "stride"]))
        most = (width - 1).bit_length() if shuffle == "stride" else 6
        choices = shuffle, draw(st.booleans()), draw(st.booleans())
        sides.append(Rotation(width, draw(st.integers(least, most)), *choices))
    one, other = sides if draw(st.booleans()) else sides[::-1]
    changes = {"width": one.width, "hidden": other.width, "activation": "gelu"}
    return replace(draw(mixtures()), **changes, rotation_in=one, rotation_out=other)


@some
@given(many_layers(), st.integers(0, 99))
def test_any_layers_are_one_op(mixture: Mixture, seed: int) -> None:
    """With L from 1 to 6 and any shuffle nothing is left that rotates by itself."""
    before = deep(build(mixture, np.random.default_rng(seed)))
    after = FuseDeepLayers()(before)
    assert_same_meaning(before, after)
    assert count(after)[OP] == count(before)["combine"]
    assert count(after)["rotate"] == 0


def test_two_layers_are_left_to_others() -> None:
    """Of at most two layers on both sides nothing is done, but for widths not in groups of four."""
    before = deep(build(Mixture(), np.random.default_rng(0)))
    assert FuseDeepLayers()(before) is before
    narrow = Mixture(width=6, hidden=6, rotation_in=Rotation(6, 1), rotation_out=Rotation(6, 1))
    graph = deep(build(narrow, np.random.default_rng(0)))
    after = FuseDeepLayers()(graph)
    assert count(after)[OP] == 1
    assert_same_meaning(graph, after)


def test_no_order_stays_within() -> None:
    """Not a shuffle is left of six layers on each side, and W_hat is no wider than it was."""
    turns = Rotation(16, 6), Rotation(32, 6, "interleave")
    mixture = Mixture(width=16, hidden=32, rotation_in=turns[0], rotation_out=turns[1])
    after = FuseDeepLayers()(deep(build(mixture, np.random.default_rng(0))))
    node = layer_of(after)
    assert count(after)["shuffle"] <= 1, "one may be in front"
    assert node.operands[2].type.shape == (32, 16)
    assert node.operands[1].type.shape == (3, 6, 16, 2)


def test_what_is_no_rotation_stays() -> None:
    """General orthogonal blocks, and reflections, are left as they are."""
    mixture = Mixture(width=8, rotation_in=Rotation(8, 3))
    before = deep(build(mixture, np.random.default_rng(0)))
    for wrong in (GENERAL, np.diag([1.0, -1.0])):
        constants = {
            digest: np.broadcast_to(wrong, array.shape)
            if array.ndim == 4 and array.shape[-1] == len(wrong)
            else array
            for digest, array in before.constants.items()
        }
        off = Graph(before.name, before.inputs, before.outputs, constants, before.notes)
        assert FuseDeepLayers()(off) is off
    assert block_layers(np.tile(np.eye(8), (1, 1, 1, 1))) is None


@pytest.mark.parametrize(("activation", "count_of_layers"), [("gelu", 1), ("sigmoid", 0)])
def test_further_channels_must_stay_zeros(activation: str, count_of_layers: int) -> None:
    """An activation that makes something of nothing is not moved in front of padding."""
    mixture = Mixture(hidden=12, rotation_out=Rotation(12, 3, "interleave"), activation=activation)
    before = deep(build(mixture, np.random.default_rng(0)))
    after = FuseDeepLayers()(before)
    assert count(after)[OP] == count_of_layers
    assert_same_meaning(before, after)


def test_codes_of_channels_that_go_stay() -> None:
    """The scale of a row is of the channels that are kept, so with some dropped it is not fused."""
    turn = Rotation(12, 3, "interleave", transposed=True)
    mixture = Mixture(width=12, rotation_in=turn)
    graph = build(mixture, np.random.default_rng(0))
    assert count(FuseDeepLayers()(deep(graph)))[OP] == 1
    coded = deep(graph, QuantizeActivations())
    assert FuseDeepLayers()(coded) is coded


def test_codes_of_seven_bits_stay() -> None:
    """GPUs have no use for them."""
    coded = deep(build(Mixture(rotation_in=Rotation(8, 3))), QuantizeActivations(7))
    assert FuseDeepLayers()(coded) is coded


def test_an_order_that_repeats_stays() -> None:
    """A channel that is taken twice cannot keep its place."""
    before = deep(build(Mixture(rotation_in=Rotation(8, 3)), np.random.default_rng(0)))
    (order,) = (n.operands[1] for n in before.nodes if n.op == "shuffle" and n.type.rank == 3)
    twice = {str(order["digest"]): np.zeros(order.type.shape, np.int32)}
    constants = {**before.constants, **twice}
    off = Graph(before.name, before.inputs, before.outputs, constants, before.notes)
    assert FuseDeepLayers()(off) is off


def test_what_others_read_stays() -> None:
    """A rotated row that is also an output is not taken away."""
    before = deep(build(Mixture(rotation_in=Rotation(8, 3)), np.random.default_rng(0)))
    (rows,) = (n for n in before.nodes if n.op == "ternary_matmul")
    seen = make("neg", rows.operands[0], name="seen")
    both = Graph(before.name, before.inputs, (*before.outputs, seen), before.constants)
    assert FuseDeepLayers()(both) is both
