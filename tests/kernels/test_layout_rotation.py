"""Rotation blocks come out of their packing as they went in, and lie beside their channels."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.kernels.layout import pack, storage, unpack
from butterflyc.kernels.record import Tensor


@given(
    st.sampled_from([1, 4, 8]),
    st.sampled_from([1, 4, 8]),
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from([2, 4, 8]),
)
def test_round_trip(width, lanes, experts, blocks, b):
    """unpack(pack(blocks)) is blocks, and the packed shape is the one that storage says."""
    shape = experts, blocks * lanes, b, b
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    layout = f"rotation{width}x{lanes}"
    packed = pack(layout, array)
    assert packed.shape == storage(Tensor("f32", shape, layout)).shape
    np.testing.assert_array_equal(unpack(layout, packed, shape), array)


def test_coefficients_lie_beside_their_channels():
    """In rotation8x8, row i of group 9's block stands at its channel 32 + 8 i + 1."""
    blocks = np.random.default_rng(0).standard_normal((1, 16, 4, 4)).astype(np.float32)
    packed = pack("rotation8x8", blocks)
    for member in range(4):
        np.testing.assert_array_equal(packed[0, 4 + member, :, 1], blocks[0, 9, member])
