"""How many products an int16 accumulator holds: the bounds that the ternary kernels stand on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

LARGEST = 127
INT16 = 32767


def wraps(products):
    """Whether adding these products in int16 gives another sum than in integers."""
    return int(products.astype(np.int16).sum(dtype=np.int16)) != int(products.sum())


def bounded(count, low, high, times=1):
    """``count`` products of activations of at most 127 and weights low..high, scaled."""
    q = arrays(np.int64, count, elements=st.integers(-LARGEST, LARGEST))
    w = arrays(np.int64, count, elements=st.integers(low, high))
    return st.tuples(q, w).map(lambda pair: pair[0] * pair[1] * times)


@pytest.mark.parametrize(("products", "largest"), [(258, 1), (128, 2)])
def test_bounds_hold_for_the_worst_inputs(products, largest):
    """258 products by -1, 0, 1, or 128 by codes 0, 1, 2 fit: all 127 and the largest weight."""
    for sign in (1, -1):
        assert not wraps(np.full(products, sign * LARGEST * largest))
    assert wraps(np.full(INT16 // (LARGEST * largest) + 1, LARGEST * largest))


@given(bounded(258, -1, 1))
def test_signed_weights_are_exact_up_to_258_products(products):
    """No 258 products of int8 and -1, 0, 1 overflow int16."""
    assert not wraps(products)


@given(bounded(128, 0, 2))
def test_codes_are_exact_up_to_128_products(products):
    """No 128 products of int8 and codes 0, 1, 2 overflow int16."""
    assert not wraps(products)


def test_sums_of_two_products_fit_in_a_byte_for_seven_bits() -> None:
    """Tables of activations of at most 63 hold their nine sums in int8; of 64 they would not."""
    for most, fits in ((63, True), (64, False)):
        sums = np.array([most * a + most * b for a in (-1, 0, 1) for b in (-1, 0, 1)])
        assert (np.abs(sums).max() <= LARGEST) == fits


@given(arrays(np.int64, 256, elements=st.integers(-126, 126)))
def test_look_ups_are_exact_for_512_columns(sums):
    """No 256 sums of two products of 7-bit codes overflow int16."""
    assert not wraps(sums)


def test_look_ups_are_exact_for_the_worst_inputs():
    """256 sums of 126 fit in int16, as 260 do and 261 do not."""
    assert not wraps(np.full(256, -126))
    assert not wraps(np.full(260, 126))
    assert wraps(np.full(261, 126))


@pytest.mark.parametrize(("plane", "products"), [(0, 128), (1, 32), (2, 8)])
def test_unshifted_planes_are_exact(plane, products):
    """Codes left where they lie in the byte scale by 1, 4, 16: fewer products, and exact shifts."""
    worst = np.full(products, 2 * LARGEST * 4**plane)
    assert not wraps(worst)
    assert worst.sum() >> (2 * plane) == 2 * LARGEST * products
