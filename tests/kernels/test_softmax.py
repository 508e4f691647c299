"""softmax against the interpreter in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir.ops import OPS
from butterflyc.kernels.record import Spec
from butterflyc.kernels.softmax import KERNEL

from .harness import EVERY_LANES, relative_error, run, tensor


def spec_of(x, axis=-1):
    return Spec("softmax", (("axis", axis),), (tensor(x),), (tensor(x),))


@pytest.mark.parametrize("lanes", EVERY_LANES)
@settings(max_examples=10)
@given(
    shape=st.lists(st.integers(1, 5), max_size=3).flatmap(
        lambda lead: st.integers(1, 70).map(lambda last: (*lead, last))
    ),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
)
@example(shape=(1,), spread=1.0)
@example(shape=(5, 8), spread=1.0)
@example(shape=(2, 65), spread=30.0)
def test_every_shape(lanes, shape, spread):
    """Rows of any length and rank give the interpreter's result, and sum to one."""
    x = (np.random.default_rng(sum(shape)).standard_normal(shape) * spread).astype(np.float32)
    result = run(KERNEL, spec_of(x), [x], lanes)[0]
    wanted = OPS["softmax"].meaning(x.astype(np.float64), axis=-1)
    assert relative_error(result, wanted) < 1e-6 * max(1, spread / 4)
    np.testing.assert_allclose(result.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_extreme_scores(lanes):
    """Huge and equal scores give no NaN, no overflow and no negative value."""
    x = np.zeros((4, 11), np.float32)
    x[0, 3], x[1], x[2, 5], x[3, 0] = 3e38, 1e30, -1e30, -np.inf
    result = run(KERNEL, spec_of(x), [x], lanes)[0]
    wanted = OPS["softmax"].meaning(x.astype(np.float64), axis=-1)
    np.testing.assert_allclose(result, wanted, atol=1e-7)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_what_is_not_supported(lanes):
    """Another axis than the last and other dtypes are not supported."""
    x = np.zeros((2, 3), np.float32)
    assert KERNEL.supports(spec_of(x), lanes)
    assert KERNEL.supports(spec_of(x, 1), lanes)
    assert not KERNEL.supports(spec_of(x, 0), lanes)
    assert not KERNEL.supports(spec_of(x.astype(np.float64)), lanes)
