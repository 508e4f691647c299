"""NaN and infinity in kernels: what the interpreter makes of them, with any lanes."""

from __future__ import annotations

import numpy as np
import pytest

from butterflyc.compiler.ir.ops.elementwise import ACTIVATIONS
from butterflyc.kernels import attention, layer_norm, linear, pointwise, reduce, softmax, top_k
from butterflyc.kernels.record import Kernel

from .harness import EVERY_LANES, Array, flushed
from .meaning import meaning, results_of

# NumPy warns of what is asked for here.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered")

INF, NAN = np.inf, np.nan
SPECIAL = np.float32(
    [NAN, INF, -INF, 0, -0.0, 1, -1, 3e38, -3e38, 1e-40, 100, -100, 88.5, -88.5, 1e30, -1e30]
)
FUNCTIONS = (
    "relu",
    "gelu",
    "gelu_tanh",
    "gelu_poly",
    "silu",
    "tanh",
    "sigmoid",
    "erf",
    "exp",
    "sign",
    "abs",
)
SIZES = (1, 3, 8, 16, 19, 70)


def rows(size: int) -> Array:
    """Rows of ``size`` with NaN and infinities at their ends, in the middle, and everywhere."""
    x = np.random.default_rng(size).standard_normal((11, size)).astype(np.float32)
    x[0], x[1], x[2] = -INF, INF, NAN
    x[3, size // 2], x[4, 0], x[5, -1] = -INF, INF, INF
    x[6, 0], x[7, -1], x[8, size // 2] = NAN, NAN, NAN
    x[9, 0], x[9, -1], x[10, : size // 2 + 1] = INF, NAN, -INF
    return x


def check(
    kernel: Kernel, name: str, arrays: list[Array], lanes: object, **attributes: object
) -> None:
    """Specials are equal to the interpreter's, numbers within 1e-6 of them."""
    wanted = meaning(name, arrays, attributes)
    found = results_of(kernel, name, arrays, lanes, attributes)
    for result, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(result, want, rtol=3e-6, atol=3e-6, equal_nan=True)


@pytest.mark.parametrize("lanes", EVERY_LANES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name, lanes):
    """A function of NaN, infinity or a huge number is the interpreter's."""
    check(pointwise.KERNEL, name, [flushed(lanes, SPECIAL)], lanes)


@pytest.mark.parametrize("lanes", EVERY_LANES)
@pytest.mark.parametrize("size", SIZES)
def test_softmax(size, lanes):
    """A row of -infinity alone, with NaN or with infinity is NaN, and no other row is."""
    x = rows(size)
    check(softmax.KERNEL, "softmax", [x], lanes)
    assert np.isnan(meaning("softmax", [x])[0][:3]).all()


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_masked_scores_weigh_nothing(lanes):
    """The softmax of -infinity is exactly 0 where another score is finite."""
    x = rows(19)[[3, 10]]
    (y,) = results_of(softmax.KERNEL, "softmax", [x], lanes)
    np.testing.assert_array_equal(y[x == -INF], 0)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_rows(lanes):
    """Reductions, the choice of the largest and layer norm of such rows are the interpreter's."""
    x = rows(19)
    for name in ("max", "min", "sum", "mean"):
        check(reduce.KERNEL, name, [x], lanes, axes=(1,))
    check(reduce.KERNEL, "argmax", [x], lanes, axis=1)
    check(top_k.KERNEL, "top_k", [x], lanes, k=4)
    weights = [np.full(19, 1.5, np.float32), np.ones(19, np.float32)]
    check(layer_norm.KERNEL, "layer_norm", [x, *weights], lanes)


@pytest.mark.parametrize("lanes", EVERY_LANES)
@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal, lanes):
    """NaN or infinity in q, k or v reaches the queries that see it in the interpreter, no other."""
    rng = np.random.default_rng(3)
    for place in range(3):
        for value in (NAN, INF, -INF):
            qkv = [rng.standard_normal((1, 2, 5, 8)).astype(np.float32) for _ in range(3)]
            qkv[place][0, 1, 3, 2] = value
            check(attention.KERNEL, "attention", qkv, lanes, scale=0.3, causal=causal)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_huge_values_that_are_masked(lanes):
    """A token of 1e38 adds nothing to those before it."""
    q, k, v = (np.ones((1, 1, 4, 8), np.float32) for _ in range(3))
    v[0, 0, 3] = 1e38
    attributes = {"scale": 0.3, "causal": True}
    (y,) = results_of(attention.KERNEL, "attention", [q, k, v], lanes, attributes)
    np.testing.assert_allclose(y[0, 0, :3], 1, rtol=1e-6)


@pytest.mark.parametrize("lanes", EVERY_LANES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_linear(activation, lanes):
    """A row with NaN or infinity through a linear layer and its activation is the interpreter's."""
    x = np.ones((SPECIAL.size, 3), np.float32)
    x[:, 1] = SPECIAL
    w = np.zeros((9, 3), np.float32)
    w[:, 1] = 1
    check(linear.KERNEL, "linear", [x, w, np.zeros(9, np.float32)], lanes, activation=activation)
