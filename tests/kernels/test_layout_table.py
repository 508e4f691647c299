"""Weights come out of table codes as they went in, and pairs hold two rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.kernels.layout import pack, storage, unpack
from butterflyc.kernels.layout_table import columns_of, pack_pair
from butterflyc.kernels.record import Tensor

LAYOUTS = ["table5x4", "table4x8", "table3x2", "table1x1"]


def weights(outputs, depth, seed=0):
    return np.random.default_rng(seed).integers(-1, 2, (outputs, depth), np.int8)


@given(st.sampled_from(LAYOUTS), st.integers(1, 40), st.integers(1, 256), st.integers(0, 9))
def test_round_trip(layout, outputs, depth, seed):
    """unpack(pack(w)) is w at every shape, and the packed shape is the one that storage says."""
    w = weights(outputs, depth, seed)
    packed = pack(layout, w)
    stored = storage(Tensor("ternary", w.shape, layout))
    assert (packed.shape, packed.dtype) == (stored.shape, np.uint8)
    back = unpack(layout, packed, w.shape)
    assert back.dtype == np.int8
    np.testing.assert_array_equal(back, w)


def test_codes_lie_where_the_layout_says():
    """In table5x4, column 20 + 2 * 5 + 3 of an output is digit 3 of byte 2 of block 1."""
    w = np.zeros((1, 40), np.int8)
    w[0, 33] = 1
    expected = np.full((2, 1, 4), 121, np.uint8)
    expected[1, 0, 2] += 27
    np.testing.assert_array_equal(pack("table5x4", w), expected)


@given(st.integers(1, 256), st.integers(0, 9))
def test_a_pair_holds_two_rows(depth, seed):
    """The low half of a pair, read as int16, is row 0, and what is left is row 1; padding is 0."""
    rows = np.random.default_rng(seed).integers(-127, 128, (2, depth)).astype(np.int8)
    pair = pack_pair(rows, 5, 4)
    assert pair.size % 20 == 0
    low = pair.astype(np.int16)
    np.testing.assert_array_equal(low[:depth], rows[0])
    np.testing.assert_array_equal((pair - low)[:depth] >> 16, rows[1])
    assert not pair[depth:].any()


def test_other_values_and_sizes_are_refused():
    """A weight that is not -1, 0 or 1, and more columns than a byte can name, are errors."""
    with pytest.raises(ValueError, match="ternary weights are -1, 0 or 1, found 2"):
        pack("table5x4", np.full((1, 1), 2, np.int8))
    with pytest.raises(ValueError, match="6 columns a byte, of 1 to 5 possible"):
        columns_of(6, 1)
