"""Weights of a few balanced-ternary digits come out of their packing as they went in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.kernels.integer_numbers import MOST_PLANES, largest_of
from butterflyc.kernels.layout import pack, storage, unpack
from butterflyc.kernels.layout_planes import digits_of
from butterflyc.kernels.record import Tensor


@given(
    st.integers(1, MOST_PLANES), st.sampled_from(["5x4", "4x8"]), st.integers(1, 30),
    st.integers(1, 90), st.integers(0, 9),
)  # fmt: skip
def test_round_trip(planes: int, table: str, outputs: int, depth: int, seed: int) -> None:
    """unpack(pack(w)) is w, and the packed shape is the one that storage says."""
    most = largest_of(planes)
    w = np.random.default_rng(seed).integers(-most, most + 1, (outputs, depth)).astype(np.int8)
    layout = f"planes{planes}x{table}"
    packed = pack(layout, w)
    assert packed.shape == storage(Tensor("i8", w.shape, layout)).shape
    np.testing.assert_array_equal(unpack(layout, packed, w.shape), w)


@pytest.mark.parametrize("planes", range(1, MOST_PLANES + 1))
def test_every_number_has_its_digits(planes: int) -> None:
    """All numbers that so many digits give, and no number more."""
    most = largest_of(planes)
    numbers = np.arange(-most, most + 1)
    digits = digits_of(numbers, planes)
    assert set(np.unique(digits)) == {-1, 0, 1}
    np.testing.assert_array_equal(digits @ 3 ** np.arange(planes), numbers)
    assert len(np.unique(digits, axis=0)) == 3**planes
    with pytest.raises(ValueError, match=f"{planes} planes hold up to {most}, found {most + 1}"):
        digits_of(np.array([most + 1]), planes)
