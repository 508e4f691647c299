"""Ternary weights come out of their packing as they went in, and padding weighs nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.kernels.layout import pack, storage, unpack
from butterflyc.kernels.layout_ternary import ZERO_BYTE
from butterflyc.kernels.record import Tensor

# Scalar, AVX2, NEON without and with dot products.
LAYOUTS = ["ternary1x1", "ternary8x4", "ternary16x1", "ternary4x4"]


def weights(outputs, depth, seed=0):
    return np.random.default_rng(seed).integers(-1, 2, (outputs, depth), np.int8)


@given(st.sampled_from(LAYOUTS), st.integers(1, 70), st.integers(1, 300), st.integers(0, 9))
def test_round_trip(layout, outputs, depth, seed):
    """unpack(pack(w)) is w at every shape, and the packed shape is the one that storage says."""
    w = weights(outputs, depth, seed)
    packed = pack(layout, w)
    stored = storage(Tensor("ternary", w.shape, layout))
    assert (packed.shape, packed.dtype) == (stored.shape, np.uint8)
    back = unpack(layout, packed, w.shape)
    assert back.dtype == np.int8
    np.testing.assert_array_equal(back, w)


@given(st.sampled_from(LAYOUTS), st.integers(1, 40), st.integers(1, 80))
def test_padding_is_zero_weights(layout, outputs, depth):
    """Whatever lies outside of [N, K] in the packed tensor is code 1: weight 0."""
    packed = pack(layout, weights(outputs, depth))
    vector, group = map(int, layout.removeprefix("ternary").split("x"))
    padded = packed.shape[0] * vector, packed.shape[1] * 4 * group
    every = unpack(layout, packed, padded)
    every[:outputs, :depth] = 0
    assert not every.any()


def test_bits_lie_where_the_layout_says():
    """In ternary8x4, output 3 and k = 16 + 2 * 4 + 1 are bits 5..4 of byte 13 of step 1."""
    w = np.zeros((8, 32), np.int8)
    w[3, 25] = 1
    expected = np.full((1, 2, 32), ZERO_BYTE, np.uint8)
    expected[0, 1, 13] = 0b01100101
    np.testing.assert_array_equal(pack("ternary8x4", w), expected)


def test_other_values_are_refused():
    """A weight that is not -1, 0 or 1 is named."""
    with pytest.raises(ValueError, match="ternary weights are -1, 0 or 1, found 2"):
        pack("ternary8x4", np.full((1, 1), 2, np.int8))
