"""layer_norm against the interpreter in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir.ops import OPS
from butterflyc.kernels.layer_norm import KERNEL
from butterflyc.kernels.record import Spec

from .harness import EVERY_LANES, relative_error, run, tensor


def spec_of(x, weight, bias, eps=1e-5):
    return Spec("layer_norm", (("eps", eps),), tuple(map(tensor, (x, weight, bias))), (tensor(x),))


def arrays(shape, offset=0.0):
    rng = np.random.default_rng(sum(shape))
    x = (rng.standard_normal(shape) + offset).astype(np.float32)
    return x, *rng.standard_normal((2, shape[-1])).astype(np.float32)


def check(lanes, shape, eps, offset, limit):
    operands = arrays(shape, offset)
    result = run(KERNEL, spec_of(*operands, eps), operands, lanes)[0]
    wanted = OPS["layer_norm"].meaning(*(a.astype(np.float64) for a in operands), eps=eps)
    assert relative_error(result, wanted) < limit


@pytest.mark.parametrize("lanes", EVERY_LANES)
@settings(max_examples=10)
@given(
    shape=st.lists(st.integers(1, 5), max_size=2).flatmap(
        lambda lead: st.integers(1, 90).map(lambda last: (*lead, last))
    ),
    eps=st.sampled_from([1e-5, 1e-6, 1e-2]),
)
@example(shape=(1,), eps=1e-5)
@example(shape=(3, 1), eps=1e-5)
@example(shape=(2, 64), eps=1e-5)
def test_every_shape(lanes, shape, eps):
    """Rows of any length and rank give the interpreter's result."""
    check(lanes, shape, eps, 0.0, 1e-6)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_a_large_mean_costs_no_digits(lanes):
    """Rows around 1000 lose only what float32 inputs lose."""
    check(lanes, (4, 77), 1e-5, 1000.0, 1e-4)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_what_is_not_supported(lanes):
    """Other dtypes and empty rows are not supported."""
    x, weight, bias = arrays((2, 3))
    assert KERNEL.supports(spec_of(x, weight, bias), lanes)
    assert not KERNEL.supports(spec_of(x.astype(np.float64), weight, bias), lanes)
    assert not KERNEL.supports(spec_of(x[:0], weight, bias), lanes)
