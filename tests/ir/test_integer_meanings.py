"""Integer mode: what its ops round, that all fits 32 bits, how near they are to the real ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir.ops import OPS
from butterflyc.compiler.ir.ops.integer import (
    exp2,
    integer_attention_meaning,
    integer_layer_norm_meaning,
    integer_rotate_meaning,
    integer_softmax_meaning,
    requantize_meaning,
    rounded_shift,
    square_root,
)
from butterflyc.kernels.integer_numbers import LIMITS, OCTAVE, exp2_table

OCTAVE_TABLE = np.array(exp2_table())
SOME = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize(
    ("x", "shift", "wanted"),
    [(5, 1, 3), (-5, 1, -2), (6, 2, 2), (-6, 2, -1), (7, 0, 7), (-1, 3, 0), (-4, 3, 0)],
)
def test_halves_are_rounded_upwards(x: int, shift: int, wanted: int) -> None:
    """A shift to the right rounds to the nearest integer, and a half towards plus infinity."""
    assert rounded_shift(np.array(x), shift) == wanted


@given(st.integers(0, 2**31 - 1))
def test_square_roots_are_exact(x: int) -> None:
    """The root is the largest integer whose square is at most x."""
    assert square_root(np.array(x)) == math.isqrt(x)


def test_requantize_rounds_twice_and_clips() -> None:
    """First the dropped bits are rounded, then the product; codes end at -127 and 127."""
    x = np.array([[100, -100, 3, 32768, -32768]])
    y = requantize_meaning(x, np.int16(16384), drop=1, shift=14, dtype="i8")
    assert y.tolist() == [[50, -50, 2, 127, -127]]
    y = requantize_meaning(x, np.array([1, 2, 3, 4, 5], np.int16), drop=0, shift=0, dtype="i16")
    assert y.tolist() == [[100, -200, 9, 32767, -32767]]


def test_what_does_not_fit_32_bits_is_told() -> None:
    """A multiplier that is too large for the sums is no result, but a fault."""
    with pytest.raises(AssertionError, match="does not fit 32 bits"):
        requantize_meaning(np.array([[2**20]]), np.int16(32767), drop=0, shift=14, dtype="i8")


@SOME
@given(st.integers(1, 600), st.sampled_from(["i8", "i16"]), st.floats(-8, 8), st.integers(0, 2**16))
def test_layer_norm_is_near_the_real_one(width: int, dtype: str, octaves: float, seed: int) -> None:
    """Within one and a half codes of the real norm, for any width, size of the rows, and eps."""
    rng = np.random.default_rng(seed)
    limit = LIMITS[dtype]
    size = limit * 2.0 ** rng.uniform(-6, 0, (5, 1))
    x = np.clip(np.rint(size * rng.standard_normal((5, width)) / 2), -limit, limit).astype(int)
    gain, bias = rng.uniform(0.3, 3, width), rng.uniform(-3, 3, width)
    scale = 0.05
    shift = math.floor(math.log2(32767 / (gain.max() * math.sqrt(width) / scale / 2**15)))
    shift = min(shift, math.floor(math.log2(2**29 / (3 / scale))))
    factors = np.rint(gain * math.sqrt(width) / scale / 2**15 * 2.0**shift).astype(np.int64)
    added = np.rint(bias / scale * 2.0**shift).astype(np.int64)
    root = 2.0**octaves  # of eps, in codes
    eps_shift = math.frexp(width**1.5 * root)[1] - 15
    eps = min(round(width**1.5 * root / 2.0**eps_shift), 32767)
    y = integer_layer_norm_meaning(x, factors, added, shift, eps, eps_shift)
    apart = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((apart**2).mean(-1, keepdims=True) + root**2)
    wanted = np.clip((apart / deviation * gain + bias) / scale, -127, 127)
    assert np.abs(y - wanted).max() <= 1.5


@pytest.mark.parametrize("width", [1, 2, 48, 64, 256, 511, 512, 1024, 4096])
@pytest.mark.parametrize("dtype", ["i8", "i16"])
def test_the_largest_rows_fit(width: int, dtype: str) -> None:
    """Rows of nothing but the largest codes, of either sign, of one alone, or of none."""
    limit = LIMITS[dtype]
    halves = np.where(np.arange(width) % 2, limit, -limit)
    one = np.where(np.arange(width) == 0, limit, -limit)
    x = np.stack([halves, one, -one, np.full(width, limit), np.zeros(width, int)])
    gain, bias = np.full(width, 32767), np.full(width, -(2**29))
    for eps_shift in (-15, -3, 0, 13, 30):
        y = integer_layer_norm_meaning(x, gain, bias, 20, 32767, eps_shift)
        assert np.abs(y).max() <= 127
        assert (y[3:] == -127).all()  # a row without deviations is its bias


def test_exp2_halves_each_octave() -> None:
    """The table begins at 2**14, falls by half in 256 steps, and is 0 behind 15 octaves."""
    table = np.array(exp2_table())
    assert table[0] == 2**14
    assert (np.diff(table) < 0).all()
    steps = np.arange(0, 20 * OCTAVE)
    e = exp2(steps, table, 1, 1 << 20, 0)
    assert np.abs(e - 2.0 ** (14 - steps / OCTAVE)).max() <= 1
    assert (e[15 * OCTAVE :] == 0).all()


@SOME
@given(st.integers(1, 40), st.floats(1e-4, 2), st.integers(0, 2**16))
def test_softmax_is_near_the_real_one(width: int, unit: float, seed: int) -> None:
    """Probabilities are within 1 / 200 of the real ones."""
    rng = np.random.default_rng(seed)
    x = np.rint(rng.standard_normal((4, width)) * 3 / unit).astype(np.int64)
    steps = unit * math.log2(math.e) * OCTAVE
    shift = max(0, min(18, math.floor(math.log2(32767 / steps))))
    decay = max(1, round(steps * 2**shift)), math.ceil(4096 / steps), shift
    y = integer_softmax_meaning(x, OCTAVE_TABLE, *decay)
    e = np.exp((x - x.max(-1, keepdims=True)) * unit)
    assert np.abs(y / 2**15 - e / e.sum(-1, keepdims=True)).max() <= 1 / 200


@pytest.mark.parametrize("tokens", [1, 2, 65, 1024])
def test_attention_to_the_largest_values_fits(tokens: int) -> None:
    """Equal scores and values of 127 or -127 give just these back, for any number of tokens."""
    q = np.full((1, 2, 3, 64), 127)
    k = np.full((1, 2, tokens, 64), -127)
    for value in (127, -127):
        v = np.full((1, 2, tokens, 8), value)
        y = integer_attention_meaning(q, k, v, OCTAVE_TABLE, 300, 4096, 12, causal=False)
        assert (y == value).all()


@SOME
@given(st.integers(1, 70), st.booleans(), st.integers(0, 2**16))
def test_attention_is_near_the_real_one(tokens: int, causal: bool, seed: int) -> None:
    """Within one and a half codes of the real attention on the same codes."""
    rng = np.random.default_rng(seed)
    q, k, v = rng.integers(-127, 128, (3, 1, 2, tokens, 16))
    scale = 3.0 / (127 * 127 * 4)
    steps = scale * math.log2(math.e) * OCTAVE
    shift = math.floor(math.log2(32767 / steps))
    shift = min(shift, 18)
    decay = round(steps * 2**shift), math.ceil(4096 / steps), shift
    y = integer_attention_meaning(q, k, v, OCTAVE_TABLE, *decay, causal)
    wanted = OPS["attention"].meaning(*(a.astype(float) for a in (q, k, v)), scale, causal)
    assert np.abs(y - wanted).max() <= 1.5


@SOME
@given(st.sampled_from([2, 4, 8]), st.integers(0, 2**16))
def test_rotations_are_near_the_real_ones(size: int, seed: int) -> None:
    """Within one code of the block times the group, clipped; the largest codes fit."""
    rng = np.random.default_rng(seed)
    blocks = np.linalg.qr(rng.standard_normal((3, 5, size, size)))[0]
    experts = rng.integers(0, 3, (4, 2))
    x = rng.choice([-127, 127, 5], (4, 1, 5 * size))
    codes = np.rint(blocks * 2**14).astype(np.int64)
    y = integer_rotate_meaning(x, codes, experts, 14)
    wanted = OPS["rotate"].meaning(x.astype(float), blocks, experts, 1)
    assert np.abs(y - np.clip(wanted, -127, 127)).max() <= 1
