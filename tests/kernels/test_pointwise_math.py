"""The pointwise functions keep the errors that their docstrings state."""

from __future__ import annotations

import math

import numpy as np
import pytest

from butterflyc.kernels import pointwise_math

from .harness import EVERY_LANES
from .test_lanes import apply

erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x):
    return np.where(
        x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x)))
    )


def gelu_tanh(x):
    return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


# name: (function of float64, range, absolute error, relative error)
CLAIMS = {
    "exp2": (np.exp2, (-126, 126.9), 0, 2e-7),
    "exp": (np.exp, (-87, 88), 0, 2e-7),
    "sigmoid": (sigmoid, (-86, 90), 0, 3e-7),
    "tanh": (np.tanh, (-20, 20), 0, 4e-7),
    "erf": (erf, (-10, 10), 4e-7, 0),
    "gelu": (lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))), (-12, 12), 5e-7, 0),
    "gelu_poly": (lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))), (-12, 12), 3.2e-5, 0),
    "gelu_tanh": (gelu_tanh, (-12, 20), 3e-7, 0),
    "silu": (lambda x: x * sigmoid(x), (-86, 90), 0, 4e-7),
    "relu": (lambda x: np.maximum(x, 0), (-9, 9), 0, 0),
}


def samples(low, high):
    """Dense in the range, dense around zero, and zero."""
    even = np.linspace(low, high, 40000)
    small = np.geomspace(1e-6, 1, 4000)
    return np.concatenate([even, small, -small, np.zeros(8)]).astype(np.float32)


@pytest.mark.parametrize("lanes", EVERY_LANES)
@pytest.mark.parametrize("name", CLAIMS)
def test_error_is_as_documented(name, lanes):
    """No sample's error is larger than the docstring says."""
    exact, limits, absolute, relative = CLAIMS[name]
    x = samples(*limits)
    y = apply(getattr(pointwise_math, name), x, lanes).astype(np.float64)
    wanted = exact(x.astype(np.float64))
    scale = np.maximum(1, np.abs(x)) if name.startswith("gelu") else 1
    error = np.abs(y - wanted)
    allowed = absolute * scale + relative * np.abs(wanted)
    worst = np.argmax(error - allowed)
    assert error[worst] <= allowed[worst], (x[worst], y[worst], wanted[worst])


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_extremes_saturate(lanes):
    """Far outside their ranges the functions stay at their limits and are never NaN."""
    x = np.array([-1e30, -3e38, -1000, -100, 100, 1000, 3e38, 1e30], np.float32)
    high = x > 0
    result = {name: apply(getattr(pointwise_math, name), x, lanes) for name in CLAIMS}
    for name in ("tanh", "erf"):
        np.testing.assert_allclose(result[name], np.sign(x), atol=2e-7)
    for name in ("exp", "exp2", "sigmoid"):
        assert np.all(result[name][x <= -1000] < 2e-38)
    np.testing.assert_array_equal(result["sigmoid"][high], 1)
    for name in ("gelu", "gelu_poly", "gelu_tanh", "silu", "relu"):
        np.testing.assert_allclose(result[name][high], x[high], rtol=2e-7, atol=CLAIMS[name][2])
