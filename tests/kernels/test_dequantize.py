"""Integer sums become floats with the interpreter's roundings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.kernels.dequantize import KERNEL

from .harness import EVERY_LANES
from .meaning import floats, meaning, results_of


@pytest.mark.parametrize("lanes", EVERY_LANES)
@given(st.integers(1, 4), st.integers(1, 40), st.booleans())
@settings(max_examples=8)
def test_gives_the_interpreters_floats(lanes, rows, outputs, per_output):
    """sums * (row_scale * scale) is equal to the last bit, scale a scalar or one an output."""
    rng = np.random.default_rng(outputs)
    arrays = [
        rng.integers(-(2**30), 2**30, (rows, outputs), np.int32),
        floats(rng, rows, 1),
        floats(rng, outputs) if per_output else np.asarray(np.float32(0.3)),
    ]
    (result,) = results_of(KERNEL, "dequantize", arrays, lanes)
    np.testing.assert_array_equal(result, meaning("dequantize", arrays)[0])
