"""Dense rotations are written as layers of pairs, or refused."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.capture.recognise_factor import givens_layers
from butterflyc.compiler.capture.recognise_rotation import Blocks

ORDERS = ("deinterleave", "interleave", "none")


def turned(matrices, angles, left, right, rounded):
    """Matrices [E, n, n] with the channels left and right turned by angles [E, n / 2]."""
    cos, sin = np.cos(angles)[..., None], np.sin(angles)[..., None]
    if rounded:
        cos, sin = (x.astype(np.float32).astype(np.float64) for x in (cos, sin))
    result = matrices.copy()
    result[:, left] = cos * matrices[:, left] - sin * matrices[:, right]
    result[:, right] = sin * matrices[:, left] + cos * matrices[:, right]
    return result


def butterfly(angles, order="deinterleave", before=False, rounded=False):
    """The dense matrices [E, n, n] of layers with angles [E, L, n / 2].

    ``order`` may also be a list of orders, one a layer.
    """
    experts, layers, half = angles.shape
    n = 2 * half
    channels = np.arange(n)
    deinterleave = np.concatenate([channels[0::2], channels[1::2]])
    known = {"deinterleave": deinterleave, "interleave": np.argsort(deinterleave), "none": channels}
    matrices = np.broadcast_to(np.eye(n), (experts, n, n))
    for layer in range(layers):
        stride = 1 << layer if isinstance(order, str) and order == "none" else 1
        left = channels[channels & stride == 0]
        moved = known[order] if isinstance(order, str) else order[layer]
        if before:
            matrices = matrices[:, moved]
        matrices = turned(matrices, angles[:, layer], left, left + stride, rounded)
        if not before:
            matrices = matrices[:, moved]
    return matrices


def some_angles(rng, kind, experts, layers, n):
    """Random angles [E, L, n / 2] of a kind: wide, small, or wide where half of them are zero."""
    angles = rng.standard_normal((experts, layers, n // 2))
    if kind == "zeros":
        return np.where(rng.random(angles.shape) < 0.5, 0, angles)
    return angles * {"wide": 0.5, "small": 0.01}[kind]


def layers_of(steps):
    """The layers of pairs among the steps."""
    return [step for step in steps if isinstance(step, Blocks)]


def assert_same(steps, blocks, tolerance=1e-12):
    """The steps are rotations of pairs, and of every channel they make what the blocks make."""
    experts, groups, b = blocks.shape[:3]
    channels = groups * b
    assert steps is not None
    for layer in layers_of(steps):
        assert layer.blocks.shape == (experts, channels // 2, 2, 2)
        square = layer.blocks @ layer.blocks.swapaxes(2, 3)
        assert np.abs(square - np.eye(2)).max() <= 1e-6 + tolerance
        assert (np.linalg.det(layer.blocks) > 0).all()
    rows = np.broadcast_to(np.eye(channels), (experts, channels, channels))
    wanted = applied(Blocks(blocks), rows)
    for step in steps:
        rows = applied(step, rows)
    assert np.abs(rows - wanted).max() <= tolerance


def applied(step, rows):
    """What a step makes of rows [E, R, n]."""
    if not isinstance(step, Blocks):
        return rows[:, :, step.order]
    experts, groups, b = step.blocks.shape[:3]
    parts = rows.reshape(experts, -1, groups, b).swapaxes(1, 2)
    return (parts @ step.blocks.swapaxes(2, 3)).swapaxes(1, 2).reshape(rows.shape)


def rotations(rng, experts, n):
    """Random matrices [E, n, n] of SO(n)."""
    matrices = np.linalg.qr(rng.standard_normal((experts, n, n)))[0]
    matrices[:, 0] *= np.linalg.det(matrices)[:, None]
    return matrices


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [4, 8, 16, 64])
def test_every_convention_comes_back(n, order):
    """Layers of any convention, depth and count of experts come back in no more layers."""
    rng = np.random.default_rng(n)
    for layers in range(1, n.bit_length()):
        for before, transposed, experts in itertools.product((False, True), (False, True), (1, 8)):
            angles = some_angles(rng, "wide", experts, layers, n)
            matrices = butterfly(angles, order, before)
            blocks = (matrices.swapaxes(1, 2) if transposed else matrices)[:, None]
            steps = givens_layers(blocks)
            assert_same(steps, blocks)
            assert len(layers_of(steps)) == layers


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("kind", ["small", "zeros"])
@pytest.mark.parametrize("order", ORDERS)
def test_small_and_absent_angles_come_back(order, kind, rounded):
    """Angles of 0.01 and angles of which half are zero come back, also with rounded cosines."""
    rng = np.random.default_rng(5)
    for n, experts in itertools.product((4, 8, 16, 64), (1, 8)):
        for layers in range(1, n.bit_length()):
            angles = some_angles(rng, kind, experts, layers, n)
            blocks = butterfly(angles, order, rounded=rounded)[:, None]
            steps = givens_layers(blocks)
            assert_same(steps, blocks)
            assert len(layers_of(steps)) <= n.bit_length() - 1


@pytest.mark.parametrize(("n", "kind"), [(256, "wide"), (256, "small"), (1024, "wide")])
def test_full_depth_of_wide_channels(n, kind):
    """Eight experts of full depth come back, with cosines and sines that float32 rounds."""
    layers = n.bit_length() - 1
    angles = some_angles(np.random.default_rng(1), kind, 8 if n < 1024 else 2, layers, n)
    blocks = butterfly(angles, rounded=True)[:, None]
    steps = givens_layers(blocks)
    assert_same(steps, blocks)
    assert len(layers_of(steps)) == layers


def test_groups_may_have_pairs_of_their_own():
    """Blocks of 4 with other pairs and other depths stand side by side."""
    rng = np.random.default_rng(2)
    some = [
        butterfly(some_angles(rng, "wide", 3, layers, 4), order)
        for layers, order in itertools.product((1, 2), ORDERS)
    ]
    blocks = np.stack([*some, np.broadcast_to(np.eye(4), (3, 4, 4))], 1)
    steps = givens_layers(blocks)
    assert_same(steps, blocks)
    assert len(layers_of(steps)) == 2


@pytest.mark.parametrize("n", [4, 8, 64])
@pytest.mark.parametrize("equal", ["all", "layer"])
def test_equal_angles(n, equal):
    """Where every pair fits, because the angles are the same, those chosen fit together."""
    layers = n.bit_length() - 1
    angle = np.full(layers, np.pi / 4) if equal == "all" else 0.1 + 0.2 * np.arange(layers)
    blocks = butterfly(np.broadcast_to(angle[:, None], (2, layers, n // 2)))[:, None]
    steps = givens_layers(blocks)
    assert_same(steps, blocks)
    assert len(layers_of(steps)) == layers


@pytest.mark.parametrize("experts", [1, 8])
def test_half_turns(experts):
    """Angles of 0 and pi, which differ by expert, come back as signs."""
    angles = np.pi * np.random.default_rng(3).integers(2, size=(experts, 3, 8))
    blocks = butterfly(angles)[:, None]
    assert_same(givens_layers(blocks), blocks)


def test_the_identity_needs_no_step_and_an_order_no_layer():
    """The identity is no step at all, an order of channels is one step."""
    identity = np.broadcast_to(np.eye(8), (2, 1, 8, 8))
    order = np.random.default_rng(0).permutation(8)
    assert givens_layers(identity) == []
    (step,) = givens_layers(identity[:, :, order])
    np.testing.assert_array_equal(step.order, order)


def test_one_expert_may_be_the_identity_and_a_channel_idle():
    """An expert that does nothing and a channel that nobody turns do not hide the pairs."""
    angles = some_angles(np.random.default_rng(4), "wide", 4, 4, 16)
    angles[0] = 0
    angles[:, :, 0] = 0
    blocks = butterfly(angles)[:, None]
    steps = givens_layers(blocks)
    assert_same(steps, blocks)
    assert len(layers_of(steps)) == 4


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 3]), st.integers(0, 2**32 - 1))
def test_random_orders_between_layers(log, layers, experts, seed):
    """Any orders come back if no two channels meet twice, and else are right or None."""
    rng = np.random.default_rng(seed)
    n, layers = 1 << log, min(layers, log)
    orders = [rng.permutation(n) for _ in range(layers)]
    blocks = butterfly(some_angles(rng, "wide", experts, layers, n), orders)[:, None]
    paths = np.eye(n)
    for order in orders:
        paths = np.repeat(paths[0::2] + paths[1::2], 2, axis=0)[order]
    steps = givens_layers(blocks)
    if steps is None:
        assert paths.max() > 1
    else:
        assert_same(steps, blocks)


@pytest.mark.parametrize("n", [4, 8, 64])
@pytest.mark.parametrize("experts", [1, 8])
def test_other_rotations_are_refused(n, experts):
    """A random rotation of four or more channels has too many degrees of freedom."""
    assert givens_layers(rotations(np.random.default_rng(n), experts, n)[:, None]) is None


def test_a_reflection_of_one_expert_is_refused():
    """No order shared by the experts makes one of them turn the orientation and another keep it."""
    blocks = butterfly(some_angles(np.random.default_rng(6), "wide", 4, 3, 8))[:, None]
    blocks[1, :, 0] *= -1
    assert givens_layers(blocks) is None
    assert givens_layers(np.stack([np.eye(2), np.diag([1.0, -1.0])])[:, None]) is None


def test_a_reflection_of_every_expert_is_an_exchange():
    """What turns the orientation for every expert is a rotation before an exchange of channels."""
    blocks = np.array([[[[0.6, 0.8], [0.8, -0.6]]], [[[1.0, 0.0], [0.0, -1.0]]]])
    assert_same(givens_layers(blocks), blocks)


@pytest.mark.parametrize("kind", ["wide", "small"])
def test_one_value_off_is_refused(kind):
    """One expert of eight that is no butterfly, or one value that is off by 1e-9, is noticed."""
    rng = np.random.default_rng(7)
    blocks = butterfly(some_angles(rng, kind, 8, 4, 16))[:, None]
    other, off = blocks.copy(), blocks.copy()
    other[5] = rotations(rng, 1, 16)
    off[5, 0, 3, 9] += 1e-9
    assert givens_layers(blocks) is not None
    assert givens_layers(other) is None
    assert givens_layers(off) is None


def test_what_is_not_orthogonal_is_refused():
    """Random weights, zeros, values that are not finite, and widths of no power of two are None."""
    rng = np.random.default_rng(8)
    assert givens_layers(rng.standard_normal((2, 1, 8, 8))) is None
    assert givens_layers(np.zeros((2, 1, 8, 8))) is None
    assert givens_layers(np.full((2, 1, 8, 8), np.nan)) is None
    assert givens_layers(np.broadcast_to(np.eye(6), (2, 1, 6, 6))) is None
    assert givens_layers(np.zeros((2, 0, 8, 8))) is None
    leaning = np.eye(4)
    leaning[:, 1] = 0.6, 0.8, 0, 0  # columns of length 1 that are not orthogonal
    assert givens_layers(leaning[None, None]) is None


@pytest.mark.parametrize("kind", ["wide", "small"])
def test_rounded_matrices_need_their_noise(kind):
    """A matrix that float32 rounds is no exact butterfly; said how far it is off, it is found."""
    angles = some_angles(np.random.default_rng(9), kind, 8, 6, 64)
    blocks = butterfly(angles)[:, None].astype(np.float32).astype(np.float64)
    assert givens_layers(blocks) is None
    steps = givens_layers(blocks, noise=1e-7)
    assert_same(steps, blocks, 2e-6)
    assert len(layers_of(steps)) == 6


def cut_off(matrices, n):
    """The matrices with zeros in the rows and columns from ``n`` on."""
    matrices = matrices.copy()
    matrices[:, n:] = matrices[:, :, n:] = 0
    return matrices


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("n", "layers"), [(24, 1), (24, 2), (20, 1), (40, 2), (48, 3)])
def test_rotations_come_back_of_which_channels_are_cut_off(n, layers, order):
    """Rows and columns that are cut off are made up, so that the others come out as they were."""
    rng = np.random.default_rng(n)
    wide = 1 << n.bit_length()
    for before, transposed, experts in itertools.product((False, True), (False, True), (1, 4)):
        angles = some_angles(rng, "wide", experts, layers, wide)
        matrices = butterfly(angles, order, before)
        blocks = cut_off(matrices.swapaxes(1, 2) if transposed else matrices, n)[:, None]
        steps = givens_layers(blocks)
        assert steps is not None
        assert len(layers_of(steps)) == layers
        rows = np.broadcast_to(np.eye(wide), (experts, wide, wide))
        for step in steps:
            rows = applied(step, rows)
        read, kept = (blocks != 0).any((0, 1, 2)), (blocks != 0).any((0, 1, 3))
        off = np.abs(rows - blocks[:, 0].swapaxes(1, 2))
        assert off[:, read][:, :, kept].max() <= 1e-12


def test_other_matrices_of_which_channels_are_cut_off_are_refused():
    """Parts of other rotations, and parts of a rotation that is scaled, are None."""
    rng = np.random.default_rng(1)
    blocks = butterfly(some_angles(rng, "wide", 3, 2, 32))
    for other in (rotations(rng, 3, 32), 0.999 * blocks, blocks * rng.uniform(0.9, 1, 32)):
        assert givens_layers(cut_off(other, 24)[:, None]) is None
    assert givens_layers(cut_off(blocks, 24)[:, None]) is not None
