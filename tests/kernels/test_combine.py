"""The chosen experts' values are gated and added."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.kernels.combine import KERNEL

from .harness import EVERY_LANES
from .meaning import floats, meaning, relative_error, results_of


@pytest.mark.parametrize("lanes", EVERY_LANES)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 40))
@settings(max_examples=8)
def test_agrees_with_its_meaning(lanes, tokens, chosen, channels):
    """For every number of chosen experts the sum is the op's."""
    rng = np.random.default_rng(channels)
    arrays = [floats(rng, tokens, chosen, channels), floats(rng, tokens, chosen)]
    (result,) = results_of(KERNEL, "combine", arrays, lanes)
    assert relative_error(result, meaning("combine", arrays, double=True)[0]) < 1e-6
