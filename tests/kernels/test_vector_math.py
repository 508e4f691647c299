"""log, sin, cos, pow and exp keep the errors that their docstrings state, and NumPy's specials."""

from __future__ import annotations

import numpy as np
import pytest

from butterflyc.kernels import vector_math

from .harness import EVERY_LANES, flushed
from .test_lanes import apply

# Both sides of 1 closely, every power of two, subnormals.
NEAR_ONE = 1 + np.linspace(-0.3, 0.45, 20000)
POSITIVE = np.concatenate(
    [np.geomspace(1e-38, 3.4e38, 20000), NEAR_ONE, 2.0 ** np.arange(-149, 128)]
)
TURNS = np.concatenate([np.arange(-300, 300) * np.pi / 4, np.linspace(-20, 20, 20000)])
WIDE = np.random.default_rng(0).uniform(-(2.0**20), 2.0**20, 20000)

# name: (samples, absolute error, relative error)
CLAIMS = {
    "exp": (np.linspace(-87.3, 88.7, 40000), 0, 5e-7),
    "log": (POSITIVE, 0, 2e-7),
    "sin": (np.concatenate([TURNS, WIDE]), 2e-7, 0),
    "cos": (np.concatenate([TURNS, WIDE]), 2e-7, 0),
}
SPECIAL = np.float32(
    [0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 2, -2, 0.5, -0.5, 3, -3, 1e30, -1e30]
)
SPECIAL = np.concatenate([SPECIAL, np.float32([1e-40, -1e-40, 2.5, -2.5, 3e38, 128, -150, 1e-30])])


def whole_vectors(x):
    """``x`` as float32, cut to a multiple of eight elements."""
    return np.asarray(x[: len(x) // 8 * 8], np.float32)


@pytest.mark.parametrize("lanes", EVERY_LANES)
@pytest.mark.parametrize("name", CLAIMS)
def test_error_is_as_documented(name, lanes):
    """No sample's error is larger than the docstring says."""
    samples, absolute, relative = CLAIMS[name]
    single = np.asarray(samples, np.float32)
    x = whole_vectors(single[flushed(lanes, single) == single])
    y = apply(getattr(vector_math, name), x, lanes).astype(np.float64)
    wanted = getattr(np, name)(x.astype(np.float64))
    error, allowed = np.abs(y - wanted), absolute + relative * np.abs(wanted)
    worst = np.argmax(error - allowed)
    assert error[worst] <= allowed[worst], (x[worst], y[worst], wanted[worst])


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_special_values_are_numpys(lanes):
    """Zeros, infinities, NaN and negative numbers give what NumPy gives."""
    x = flushed(lanes, np.resize(SPECIAL, 24))
    with np.errstate(all="ignore"):
        for name in ("exp", "log"):
            found = apply(getattr(vector_math, name), x, lanes)
            np.testing.assert_allclose(found, getattr(np, name)(x), rtol=5e-7, err_msg=name)
    for name in ("sin", "cos"):
        found = apply(getattr(vector_math, name), x, lanes)
        np.testing.assert_array_equal(np.isnan(found), ~(np.abs(x) <= 2.0**30))
