"""Integer mode's quotients and curves: what they round, and how near they are to the real ones."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir.ops.elementwise import ACTIVATIONS
from butterflyc.compiler.ir.ops.integer_gates import integer_divide_meaning, interpolate_meaning

CODES = st.integers(-32767, 32767)
SOME = settings(max_examples=60, deadline=None)


@SOME
@given(CODES, CODES.filter(bool), st.integers(0, 15))
def test_quotients_are_the_nearest(a: int, b: int, shift: int) -> None:
    """A quotient is the nearest integer, a half away from zero, and clipped."""
    exact = abs(Fraction(a * 2**shift, b))
    nearest = min(floor(exact + Fraction(1, 2)), 32767)
    wanted = nearest if a * b >= 0 else -nearest
    assert integer_divide_meaning(np.array(a), np.array(b), shift) == wanted


@pytest.mark.parametrize("a", [-32767, -1, 0, 1, 32767])
def test_a_quotient_by_zero_is_the_largest(a: int) -> None:
    """By zero a quotient is clipped at its sign; 0 / 0 is 0, and the largest codes fit 32 bits."""
    assert integer_divide_meaning(np.array(a), np.array(0), 15) == np.sign(a) * 32767
    assert abs(integer_divide_meaning(np.array(a), np.array(32767), 15)) <= 32767


@SOME
@given(st.integers(2, 8), st.integers(0, 2**16))
def test_shares_add_up_to_one(k: int, seed: int) -> None:
    """Gates over their sum are within one code of the real shares, whose sum is 2**15."""
    rng = np.random.default_rng(seed)
    gates = rng.integers(0, 32768 // k, k)
    gates[0] += 1
    shares = integer_divide_meaning(gates, gates.sum(keepdims=True), 15)
    assert np.abs(shares - np.minimum(gates / gates.sum() * 2**15, 32767)).max() <= 0.5
    assert abs(int(shares.sum()) - 2**15) <= k


@SOME
@given(st.sampled_from(["sigmoid", "tanh"]), st.floats(0.01, 12), st.integers(0, 2**16))
def test_curves_are_near_the_real_ones(name: str, limit: float, seed: int) -> None:
    """With knots over +-limit, a curve is within 60 of 32767 codes of the real one."""
    knots = np.arange(-(2**15), 2**15 + 1, 256) * (limit / 32767)
    table = np.rint(ACTIVATIONS[name](knots) * 32767).astype(np.int16)
    x = np.random.default_rng(seed).integers(-32767, 32768, 100)
    wanted = ACTIVATIONS[name](x * (limit / 32767)) * 32767
    assert np.abs(interpolate_meaning(x, table) - wanted).max() <= 60


@pytest.mark.parametrize("ends", [(-32767, 32767), (32767, -32767), (32767, 32767)])
def test_the_steepest_curve_fits(ends: tuple[int, int]) -> None:
    """Knots that jump from one end to the other stay between both, and are met exactly."""
    table = np.resize(np.array(ends, np.int16), 257)
    x = np.arange(-32767, 32768)
    y = interpolate_meaning(x, table)
    assert np.abs(y).max() <= 32767
    at_knots = x % 256 == 0
    np.testing.assert_array_equal(y[at_knots], table[(x[at_knots] + 2**15) >> 8])
