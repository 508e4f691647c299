"""merge_rotations: layers of Givens rotations become rotations of larger blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.errors import UsageError
from butterflyc.compiler.ir import Graph, Type, input_node, make
from butterflyc.passes.merge_rotations import MergeRotations

from .graphs import Builder, Mixture, Rotation, build, mixtures, rotations, some
from .meaning import Golden, assert_same_meaning, check_golden, count


def alone(rotation: Rotation, seed: int = 0, experts: int = 3) -> Graph:
    """One rotation and nothing else."""
    b = Builder(np.random.default_rng(seed))
    x = input_node("x", Type("f32", (4, rotation.width)))
    number = make("argmax", make("slice", x, axis=1, stop=min(experts, rotation.width)), axis=1)
    assert b.rng is not None
    y = b.rotation(x, rotation, number, "theta", rotation.angles(experts, b.rng))
    return Graph("rotation", (x,), (make("neg", y),), b.store)


def test_golden(golden: Golden) -> None:
    """Two layers become one; a third stays; padding to 8 of which 6 are used leaves one shuffle."""
    one = Mixture(k=1, rotation_in=Rotation(8), rotation_out=Rotation(16, 3), down="absent")
    two = Mixture(k=1, width=6, rotation_in=Rotation(6, transposed=True), rotation_out=None)
    check_golden(golden, MergeRotations(), build(one), build(two))


@some
@given(mixtures(), st.integers(0, 99))
def test_means_the_same(mixture: Mixture, seed: int) -> None:
    """Any mixture computes the same after its rotations are merged."""
    graph = build(mixture, np.random.default_rng(seed))
    assert_same_meaning(graph, MergeRotations()(graph))


@given(st.integers(2, 40).flatmap(rotations), st.sampled_from([2, 4, 8, 64]))
def test_layers_become_few(rotation: Rotation, most: int) -> None:
    """L layers on a full width become L / log2(max_block) rotations, rounded up, and no more."""
    graph = alone(rotation)
    merged = MergeRotations(most)(graph)
    assert_same_meaning(graph, merged)
    joined = most.bit_length() - 1
    assert count(merged)["rotate"] == -(-rotation.layers // joined)
    assert count(merged)["shuffle"] <= count(merged)["rotate"] + 1


@pytest.mark.parametrize("layers", [1, 2])
def test_untransposed_deinterleave_needs_one_permutation(layers: int) -> None:
    """Its blocks are contiguous channels: nothing moves in front of the rotation."""
    merged = MergeRotations()(alone(Rotation(16, layers)))
    assert [node.op for node in merged.nodes if node.op in ("rotate", "shuffle")] == [
        "rotate",
        "shuffle",
    ]


def test_padding_that_no_group_needs_is_not_computed() -> None:
    """48 channels padded to 64 at L = 2 rotate as 12 groups of 4, with no padding in front."""
    merged = MergeRotations()(alone(Rotation(48)))
    (rotation,) = (node for node in merged.nodes if node.op == "rotate")
    assert rotation.operands[1].type.shape[1:] == (12, 4, 4)
    assert rotation.operands[0].op == "input"


def test_groups_that_are_stripped_are_not_computed() -> None:
    """The transpose has whole groups of stripped channels behind it: they go too."""
    merged = MergeRotations()(alone(Rotation(48, transposed=True)))
    (rotation,) = (node for node in merged.nodes if node.op == "rotate")
    assert rotation.operands[1].type.shape[1:] == (12, 4, 4)


def test_other_experts_are_left_alone() -> None:
    """Two rotations by different expert numbers do not commute with a choice of block."""
    b = Builder(np.random.default_rng(0))
    x = input_node("x", Type("f32", (4, 8)))
    first, second = (make("argmax", make(op, x), axis=1) for op in ("neg", "abs"))
    y = make("rotate", x, b.numbers("a", 8, 4, 2, 2), first)
    y = make("rotate", y, b.numbers("b", 8, 4, 2, 2), second)
    graph = Graph("two", (x,), (y,), b.store)
    assert MergeRotations()(graph) == graph


def test_a_rotation_read_twice_is_left_alone() -> None:
    """What is needed by itself is not computed a second time inside a product."""
    b = Builder(np.random.default_rng(0))
    x = input_node("x", Type("f32", (4, 8)))
    number = make("argmax", x, axis=1)
    y = make("rotate", x, b.numbers("a", 8, 4, 2, 2), number)
    z = make("rotate", y, b.numbers("b", 8, 4, 2, 2), number)
    graph = Graph("two", (x,), (y, z), b.store)
    assert MergeRotations()(graph) == graph


@pytest.mark.parametrize("size", [0, 1, 3, 6])
def test_block_size_is_checked(size: int) -> None:
    """A block size that is no power of two from 2 up is refused."""
    with pytest.raises(UsageError, match="max_block"):
        MergeRotations(size)
