"""Two-bit codes of groups of four columns come out of their packing as they went in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.kernels.gpu.launch import Unpack
from butterflyc.kernels.gpu.library import unpack as unpack_buffer
from butterflyc.kernels.layout import pack, storage, unpack
from butterflyc.kernels.layout_crumbs import fragment_order
from butterflyc.kernels.record import Tensor

SIZES = st.sampled_from(["16x16x0", "16x64x1", "64x32x1", "1x4x0"])


@given(SIZES, st.integers(1, 70), st.integers(1, 70), st.integers(0, 9))
def test_round_trip(sizes, rows, columns, seed):
    """unpack(pack(w)) is w, and the packed shape is the one that storage says."""
    w = np.random.default_rng(seed).integers(-1, 2, (rows, columns)).astype(np.int8)
    packed = pack(f"crumbs{sizes}", w)
    stored = storage(Tensor("ternary", w.shape, f"crumbs{sizes}"))
    assert (packed.dtype, packed.shape) == (np.uint8, stored.shape)
    np.testing.assert_array_equal(unpack(f"crumbs{sizes}", packed, w.shape), w)


def test_a_byte_is_a_group_of_columns():
    """0, 1, -1 and 1 are the bits 00 01 11 01."""
    packed = pack("crumbs1x4x0", np.array([[0, 1, -1, 1]], np.int8))
    assert packed.tolist() == [[0b00_01_11_01]]


def test_a_code_on_top_of_a_word_is_plus_or_minus_two():
    """Cut to two bits, the upper byte of a half, bfloat16 or float32 is 0, 2 or -2; int8, 64."""
    packed = int(pack("crumbs1x4x0", np.array([[0, 1, -1, 0]], np.int8))[0, 0])
    tops = [np.uint32(packed << 2 * p & 0xC0) for p in range(4)]
    words = np.array([top << np.uint32(24) for top in tops], np.uint32)
    assert words.view(np.float32).tolist() == [0, 2, -2, 0]
    halves = (words >> 16).astype(np.uint16)
    assert halves.view(np.float16).tolist() == [0, 2, -2, 0]
    assert np.array(tops, np.uint8).view(np.int8).tolist() == [0, 64, -64, 0]


def test_fragment_order_keeps_the_members_of_a_group_in_a_thread():
    """Members of group i lie at 2i, 2i+1, 2i+8 and 2i+9 of their 16 rows."""
    order = fragment_order(32)
    for group in range(8):
        first = group // 4 * 16 + 2 * (group % 4)
        places = [first, first + 1, first + 8, first + 9]
        assert order[places].tolist() == [4 * group + member for member in range(4)]


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("planar", [False, True])
def test_a_dense_copy_is_made_of_the_codes(order, planar):
    """`Unpack` gives the weights, in the rows and padding of the codes, columns as it says."""
    w = np.random.default_rng(0).integers(-1, 2, (20, 12)).astype(np.int8)
    packed = pack(f"crumbs16x16x{order}", w)
    buffers = {"w": torch.from_numpy(packed)}
    unpack_buffer(Unpack("w", "dense", (32, 16), "f16", planar), buffers)
    wanted = np.zeros((32, 16), np.int8)
    wanted[:20, :12] = w
    wanted = wanted[fragment_order(32)] if order else wanted
    if planar:
        wanted = wanted.reshape(32, 4, 4).swapaxes(1, 2).reshape(32, 16)
    assert buffers["dense"].dtype == torch.float16
    np.testing.assert_array_equal(buffers["dense"].numpy(), wanted)


@pytest.mark.parametrize("sizes", ["16x6x0", "16x8x2", "8x8x1"])
def test_sizes_that_hold_no_groups_are_refused(sizes):
    """Columns and rows that cut a group, and orders that there are not, are errors that say so."""
    with pytest.raises(ValueError, match=rf"no layout 'crumbs{sizes}'.*multiples of 4.*of 16"):
        pack(f"crumbs{sizes}", np.zeros((16, 16), np.int8))
