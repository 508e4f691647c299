"""quantize_angles: rotations by rounded angles, as near to what they were as the pass states."""

from __future__ import annotations

from math import pi, sin

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.errors import UnknownName
from butterflyc.compiler.ir import Graph, Node, Type, input_node, make, verify
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.passes.base import load
from butterflyc.passes.givens import blocks_of
from butterflyc.passes.quantize import Quantize
from butterflyc.passes.quantize_angles import KINDS, STORED, QuantizeAngles, parts_of_a_turn

from .graphs import Builder, Mixture, Rotation, build, mixtures, some
from .meaning import Golden, check_golden, count
from .test_quantize import encoded, in_front, samples

# What an angle is off by, in radians, at most.
OFF = {"f16": pi * 2**-11, "i16": pi / 2**16, "i8": pi / 2**8}
kinds = pytest.mark.parametrize("kind", KINDS)


def merged(mixture: Mixture, seed: int | None = 0) -> Graph:
    """A mixture as this pass gets it."""
    rng = None if seed is None else np.random.default_rng(seed)
    return load("merge-rotations")()(load("canonicalize")()(build(mixture, rng)))


def rotations(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "rotate"]


def test_golden(golden: Golden) -> None:
    """Two layers of turns; their blocks change, and nothing else."""
    check_golden(golden, QuantizeAngles("i8"), merged(Mixture()))


@kinds
@some
@given(mixtures(), st.integers(0, 99))
def test_rotations_are_off_by_what_is_stated(kind: str, mixture: Mixture, seed: int) -> None:
    """A block of two layers of turns by at most 2 * 2 * sin(off / 2), and it stays orthogonal."""
    before = merged(mixture, seed)
    after = QuantizeAngles(kind)(before)
    verify(after)
    assert count(after) == count(before)
    for was, now in zip(rotations(before), rotations(after), strict=True):
        old, new = (g.value(n.operands[1]) for g, n in ((before, was), (after, now)))
        far = np.linalg.norm(new - old, ord=2, axis=(-2, -1)).max()
        assert far <= 4 * sin(OFF[kind] / 2) * 1.001
        if far:
            back = new @ new.swapaxes(-1, -2)
            assert np.abs(back - np.eye(old.shape[-1])).max() < 1e-12


def lone(blocks: np.ndarray, name: str = "blocks") -> Graph:
    """One rotation of two rows by ``blocks`` [E, G, b, b], which have that name."""
    count, groups, size, _ = blocks.shape
    b = Builder(np.random.default_rng(0))
    x = input_node("x", Type("f32", (2, 1, groups * size)))
    experts = b.constant("experts", np.array([[0], [count - 1]]), "i64")
    turned = make("rotate", x, b.constant(name, blocks, "f64"), experts)
    return Graph("g", (x,), (turned,), b.store)


def orthogonal() -> np.ndarray:
    """Blocks [2, 2, 4, 4] that no two layers of turns make."""
    blocks: np.ndarray = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2, 4, 4)))[0]
    return blocks


def test_what_is_no_turn_stays() -> None:
    """An orthogonal block of another kind, a scaled one, and groups that are no four channels."""
    scaled, threes = 2 * np.tile(np.eye(4), (2, 2, 1, 1)), np.tile(np.eye(2), (2, 3, 1, 1))
    for blocks in (orthogonal(), scaled, threes):
        graph = lone(blocks)
        assert QuantizeAngles("i8")(graph) is graph


@pytest.mark.parametrize("dtype", STORED)
def test_codes_of_angles(dtype: str) -> None:
    """The nearest part of a turn, and minus half a turn for half of one."""
    half = 2 ** (7 if dtype == "i8" else 15)
    angles = np.array([0, pi, -pi, pi / 2, -pi / 2, 0.6 * pi / half, 3 * pi / 2])
    wanted = [0, -half, -half, half // 2, -half // 2, 1, -half // 2]
    np.testing.assert_array_equal(parts_of_a_turn(angles, dtype), wanted)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("layers", [1, 2])
def test_integers_keep_angles(dtype: str, layers: int) -> None:
    """Each rotation is by angles, half as many for one layer; as near as blocks of those angles."""
    mixture = Mixture(rotation_in=Rotation(8, layers), rotation_out=Rotation(16, layers))
    graph = QuantizeAngles(dtype)(in_front(build(mixture, np.random.default_rng(0))))
    chosen = samples(graph)
    by_angles, by_blocks = (Quantize(chosen, angles=kind)(graph) for kind in (dtype, None))
    verify(by_angles)
    turned = [node for node in by_angles.nodes if node.op == "integer_turn"]
    assert len(turned) == count(by_blocks)["integer_rotate"] == 2
    assert count(by_angles)["integer_rotate"] == 0
    for node in turned:
        assert node.operands[1].type.dtype == dtype
        assert node.operands[1].type.shape[2] == 2 * layers
    for inputs in chosen:
        codes = encoded(by_angles, inputs)
        (one,), (other,) = interpret(by_angles, *codes), interpret(by_blocks, *codes)
        most = max(2, np.abs(other.astype(int)).max() // 50)
        assert np.abs(one.astype(int) - other.astype(int)).max() <= most


def test_integers_keep_blocks_of_what_is_no_turn() -> None:
    """Whatever is asked for: the block is what the model has."""
    still = blocks_of(np.tile([1.0, 0], (2, 2, 4, 1)), (0, 1, 2, 3, 0, 1, 2, 3))
    for blocks, op in ((orthogonal(), "integer_rotate"), (still, "integer_turn")):
        graph = lone(blocks)
        assert count(Quantize(samples(graph), angles="i8")(graph))[op] == 1


def test_angles_belong_to_the_layer_that_their_blocks_belong_to() -> None:
    """The last word of their name is another; a model may call its layers blocks."""
    turned = blocks_of(np.tile([0.6, 0.8], (2, 2, 4, 1)), (0, 1, 2, 3, 0, 1, 2, 3))
    graph = lone(turned, "blocks.0.mlp.in2.blocks")
    names = {node.name for node in Quantize(samples(graph), angles="i8")(graph).nodes}
    assert "blocks.0.mlp.in2.angles" in names


def test_a_kind_that_there_is_not() -> None:
    """With those that there are."""
    with pytest.raises(UnknownName, match="kind of angles 'i4'"):
        QuantizeAngles("i4")
