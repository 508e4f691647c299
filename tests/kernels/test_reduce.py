"""Reductions over any axes give what the shape table means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.kernels.reduce import KERNEL

from .batch import UNSHRUNK, Case, check_close, check_exact
from .harness import EVERY_LANES
from .test_pointwise import COMPUTED, sample

SIZES = st.sampled_from([1, 2, 3, 5, 8, 9, 17, 40])


@st.composite
def reduced(draw):
    """(shape, axes)"""
    shape = draw(st.lists(SIZES, min_size=1, max_size=4).filter(lambda s: np.prod(s) < 3000))
    axes = draw(st.sets(st.integers(0, len(shape) - 1), min_size=0))
    return shape, tuple(axis - len(shape) * draw(st.booleans()) for axis in sorted(axes))


def magnitude(case, wanted):
    """2e-6 of what a sum of magnitudes comes to: sums may cancel."""
    sizes = [np.abs(np.float64(a)) for a in case.arrays]
    return 2e-6 * Case(case.name, sizes, case.attributes).wanted()[0]


@pytest.mark.parametrize("lanes", EVERY_LANES)
@given(
    shapes=st.lists(reduced(), min_size=8, max_size=8),
    dtypes=st.lists(st.sampled_from(COMPUTED), min_size=8, max_size=8),
    keep=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=8, phases=UNSHRUNK)
def test_any_axes(shapes, dtypes, keep, seed, lanes):
    """sum, mean, max and min over any axes, kept or not, of any dtype; NaN wins over all."""
    rng = np.random.default_rng(seed)
    exact, close = [], []
    for (shape, axes), dtype in zip(shapes, dtypes, strict=True):
        attributes = {"axes": axes, "keep": keep}
        x = sample(dtype, rng, tuple(shape))
        exact += [Case(name, [x], attributes) for name in ("max", "min")]
        if dtype == "f32":
            x = rng.normal(1, 1, shape).astype(np.float32)
            close += [Case(name, [x], attributes) for name in ("sum", "mean")]
        else:
            # NumPy takes the mean of wide integers in float64, and we do not.
            small = x // 2**32 if dtype == "i64" else x
            exact += [Case(name, [small], attributes) for name in ("sum", "mean")]
    check_exact(KERNEL, exact, lanes)
    check_close(KERNEL, close, lanes, magnitude)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_long_sums_keep_their_precision(lanes):
    """A hundred thousand floats of one sign add up to within 2e-6, along rows and columns."""
    rng = np.random.default_rng(4)
    x = rng.uniform(0, 1, 100003).astype(np.float32)
    cases = []
    for shape, axes in (((100003,), (0,)), ((10000, 10), (0,)), ((10, 10, 1000), (0, 2))):
        part = x[: np.prod(shape)].reshape(shape)
        cases += [Case(name, [part], {"axes": axes}) for name in ("sum", "mean")]
    check_close(KERNEL, cases, lanes)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_argmax(lanes):
    """argmax is the first of equals along any axis; the first NaN, if there is one."""
    rng = np.random.default_rng(5)
    cases = []
    for dtype in COMPUTED:
        x = sample(dtype, rng, (5, 9, 7))
        cases += [Case("argmax", [x], {"axis": axis, "keep": axis == 1}) for axis in (0, 1, -1)]
        cases += [Case("argmax", [np.full((3, 4), x[0, 0, 0])], {"axis": -1})]
    ties = rng.integers(0, 3, (40, 16)).astype(np.float32)
    cases += [
        Case("argmax", [ties], {"axis": 1}),
        Case("argmax", [np.full(9, -np.inf, "f4")], {"axis": 0}),
    ]
    check_exact(KERNEL, cases, lanes)
