"""Channels are moved, repeated and blanked as the order says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.kernels.shuffle import KERNEL

from .harness import EVERY_LANES
from .meaning import meaning, results_of


@pytest.mark.parametrize("lanes", EVERY_LANES)
@given(
    st.integers(1, 4),
    st.integers(1, 30),
    st.integers(1, 40),
    st.sampled_from([np.float32, np.int8, np.int32]),
)
@settings(max_examples=8)
def test_agrees_with_its_meaning(lanes, rows, channels, outputs, kind):
    """Every channel is x[order], or zero where the order is -1, in any dtype."""
    rng = np.random.default_rng(channels)
    arrays = [
        rng.integers(-100, 100, (rows, channels)).astype(kind),
        rng.integers(-1, channels, outputs, np.int32),
    ]
    (result,) = results_of(KERNEL, "shuffle", arrays, lanes)
    np.testing.assert_array_equal(result, meaning("shuffle", arrays)[0])
