"""Rows are quantised to the very codes and scales that the interpreter gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.kernels.quantize_rows import KERNEL

from .harness import EVERY_LANES
from .meaning import floats, meaning, results_of

BITS = pytest.mark.parametrize("bits", [7, 8])


def check(x, lanes, bits):
    attributes = {"bits": bits}
    results = results_of(KERNEL, "quantize_rows", [x], lanes, attributes)
    for result, wanted in zip(results, meaning("quantize_rows", [x], attributes), strict=True):
        assert result.dtype == wanted.dtype
        np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("lanes", EVERY_LANES)
@BITS
@given(st.integers(1, 4), st.integers(1, 70))
@settings(max_examples=8)
def test_gives_the_interpreters_codes(lanes, bits, rows, width):
    """Codes and scales are equal to the last bit, whatever the width."""
    check(floats(np.random.default_rng(width), rows, width), lanes, bits)


@pytest.mark.parametrize("lanes", EVERY_LANES)
@BITS
def test_rounds_ties_to_even(lanes, bits):
    """Halves round to the even code; a row of zeros has scale 0; tiny and huge rows are served."""
    most = 2 ** (bits - 1) - 1
    ties = np.arange(-most, most, dtype=np.float32) + np.float32(0.5)
    rows = np.zeros((5, len(ties) + 1), np.float32)
    rows[0] = [*ties, most]
    rows[1, 7] = -3
    rows[2] = rows[0] * np.float32(2.0**-20)
    rows[3] = rows[0] * np.float32(2.0**100)
    check(rows, lanes, bits)


# NEON of ARMv7-A takes denormals for zero, whatever the mode.
@pytest.mark.parametrize("lanes", [p for p in EVERY_LANES if p.id != "neon-v7"])
@BITS
def test_denormal_rows_saturate(lanes, bits):
    """A row whose inverse scale overflows still gets codes of at most the largest."""
    with np.errstate(all="ignore"):
        check(np.array([[1e-40, -1e-40, 1e-42]], np.float32), lanes, bits)
