"""Rotations by angles that are codes: how near they are to the real ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir.ops.integer_turn import cosines, integer_turn_meaning
from butterflyc.compiler.ir.ops.layer import turn
from butterflyc.kernels.integer_numbers import PARTS, turn_table

ORDERS = st.permutations(range(4))
# So that a result is in the codes of x: 2**-7 of what is inside.
SAME = {"multiplier": 2**14, "shift": 21}


def table(dtype: str) -> np.ndarray:
    return np.array(turn_table(dtype), np.int16)


@pytest.mark.parametrize(("dtype", "bits"), [("i8", 8), ("i16", 16)])
def test_cosines_are_near_the_real_ones(dtype: str, bits: int) -> None:
    """Of every code of an angle within 1.75 of 2**14, and a whole turn is none."""
    codes = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    cos, sin = cosines(codes, table(dtype))
    angles = codes * (2 * np.pi / 2**bits)
    assert np.abs(cos / 2**14 - np.cos(angles)).max() * 2**14 <= 1.75
    assert np.abs(sin / 2**14 - np.sin(angles)).max() * 2**14 <= 1.75
    assert (cos[codes == 0], sin[codes == 0]) == (2**14, 0)


def test_turns_stay_orthogonal() -> None:
    """Whatever its angle, a turn's (cos, sin) is of length one within 2**-13."""
    for dtype, codes in (("i8", np.arange(PARTS)), ("i16", np.arange(2**16))):
        cos, sin = cosines(codes, table(dtype))
        assert np.abs(np.hypot(cos, sin) / 2**14 - 1).max() <= 2**-13


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["i8", "i16"]), st.sampled_from([2, 4]), ORDERS, ORDERS,
       st.integers(0, 2**16))  # fmt: skip
def test_turns_are_near_the_real_ones(
    dtype: str, turns: int, taken: list[int], given: list[int], seed: int
) -> None:
    """Within one code of the turns by those angles, clipped; the largest codes fit."""
    rng, bits = np.random.default_rng(seed), 8 if dtype == "i8" else 16
    codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, 5, turns))
    experts, order = rng.integers(0, 3, (4, 2)), (*taken, *given)
    x = rng.choice([-127, 127, 5, 0], (4, 1, 20))
    y = integer_turn_meaning(x, codes, experts, table(dtype), order, **SAME)
    angles = np.zeros((3, 5, 4))
    angles[..., :turns] = codes * (2 * np.pi / 2**bits)
    pairs = np.stack([np.cos(angles), np.sin(angles)], -1)
    wanted = turn(np.broadcast_to(x, (4, 2, 20)).astype(float), pairs[experts], order)
    assert np.abs(y - np.clip(wanted, -127, 127)).max() <= 0.6
