"""Numbers of pairs of weights come out of their packing as they went in; padding weighs nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.kernels.layout import pack, storage, unpack
from butterflyc.kernels.layout_pairs import NUMBERS, weights_of
from butterflyc.kernels.record import Tensor

LAYOUTS = ["pairs1", "pairs32", "pairs64"]


def weights(outputs, depth, seed=0):
    return np.random.default_rng(seed).integers(-1, 2, (outputs, depth), np.int8)


@given(st.sampled_from(LAYOUTS), st.integers(1, 130), st.integers(1, 70), st.integers(0, 9))
def test_round_trip(layout, outputs, depth, seed):
    """unpack(pack(w)) is w at every shape, and the packed shape is the one that storage says."""
    w = weights(outputs, depth, seed)
    packed = pack(layout, w)
    stored = storage(Tensor("ternary", w.shape, layout))
    assert (packed.shape, packed.dtype) == (stored.shape, np.uint8)
    back = unpack(layout, packed, w.shape)
    assert back.dtype == np.int8
    np.testing.assert_array_equal(back, w)


@given(st.sampled_from(LAYOUTS), st.integers(1, 70), st.integers(1, 80))
def test_padding_is_zero_weights(layout, outputs, depth):
    """Whatever lies outside of [N, K] in the packed tensor weighs 0."""
    packed = pack(layout, weights(outputs, depth))
    padded = packed.shape[0] * int(layout.removeprefix("pairs")), packed.shape[1] * 4
    every = unpack(layout, packed, padded)
    every[:outputs, :depth] = 0
    assert not every.any()


def test_nibbles_are_numbers_of_pairs():
    """Weights 1, -1 of columns 4 and 5 and 0, 1 of 6 and 7 are numbers 6 and 5 of group 1."""
    w = np.zeros((2, 8), np.int8)
    w[1, 4:] = 1, -1, 0, 1
    np.testing.assert_array_equal(pack("pairs2", w), [[[0x44, 0x44], [0x44, 0x56]]])
    assert (weights_of(6), weights_of(5)) == ((1, -1), (0, 1))
    assert len({weights_of(number) for number in range(NUMBERS)}) == NUMBERS


def test_other_values_are_refused():
    """A weight that is not -1, 0 or 1 is named."""
    with pytest.raises(ValueError, match="ternary weights are -1, 0 or 1, found 2"):
        pack("pairs32", np.full((1, 1), 2, np.int8))
