"""conv2d computes what the linear table means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.kernels.conv2d import KERNEL

from .batch import UNSHRUNK, Case, check_close
from .harness import EVERY_LANES


@st.composite
def convolution(draw):
    """(image shape, window shape, bias, stride, padding)"""
    small = st.integers(1, 3)
    window = [draw(small), draw(small)]
    padding = tuple(draw(st.integers(0, 2)) for _ in window)
    image = [
        max(1, n - 2 * p) + draw(st.integers(0, 5)) for n, p in zip(window, padding, strict=True)
    ]
    batch, channels, outputs = draw(small), draw(small), draw(small)
    stride = (draw(small), draw(small))
    shapes = (batch, channels, *image), (outputs, channels, *window)
    return *shapes, draw(st.booleans()), stride, padding


@pytest.mark.parametrize("lanes", EVERY_LANES)
@given(convolutions=st.lists(convolution(), min_size=8, max_size=8), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=4, phases=UNSHRUNK)
def test_convolutions(convolutions, seed, lanes):
    """Any window, stride and padding, with and without bias, within 2e-6 of the magnitudes."""
    rng = np.random.default_rng(seed)
    cases = []
    for x, w, bias, stride, padding in convolutions:
        arrays = [rng.normal(0, 1, s).astype(np.float32) for s in (x, w, w[:1])]
        attributes = {"stride": stride, "padding": padding}
        cases.append(Case("conv2d", arrays[: 2 + bias], attributes))

    def limit(case, wanted):
        sizes = [np.abs(np.float64(a)) for a in case.arrays]
        return 2e-6 * Case(case.name, sizes, case.attributes).wanted()[0]

    check_close(KERNEL, cases, lanes, limit)
