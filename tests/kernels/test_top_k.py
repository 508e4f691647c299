"""top_k chooses as the butterfly table means, ties and NaN included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.record import Spec, Tensor
from butterflyc.kernels.top_k import KERNEL

from .batch import UNSHRUNK, Case, check_exact
from .harness import EVERY_LANES

ELEMENTS = {
    "scores": lambda rng, shape: rng.normal(0, 1, shape).astype(np.float32),
    "ties": lambda rng, shape: rng.integers(0, 3, shape).astype(np.float32),
    "equal": lambda rng, shape: np.full(shape, -np.inf, np.float32),
    "special": lambda rng, shape: rng.choice(np.float32([np.nan, np.inf, -np.inf, 0, -0.0]), shape),
    "integers": lambda rng, shape: rng.integers(-5, 5, shape).astype(np.int32),
}


@pytest.mark.parametrize("lanes", EVERY_LANES)
@given(
    rows=st.lists(st.integers(1, 5), max_size=2),
    sizes=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 60)), min_size=3, max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=4, phases=UNSHRUNK)
def test_the_largest_come_first(rows, sizes, seed, lanes):
    """Values and places are those of a stable descending sort; NaN goes last."""
    rng = np.random.default_rng(seed)
    cases = [
        Case("top_k", [make(rng, (*rows, k + more))], {"k": k})
        for k, more in sizes
        for make in ELEMENTS.values()
    ]
    check_exact(KERNEL, cases, lanes)


def test_a_large_k_is_refused():
    """Insertion is for a small k."""
    x, y = Tensor("f32", (32,)), Tensor("f32", (9,))
    assert not KERNEL.supports(Spec("top_k", (("k", 9),), (x,), (y, y)), Lanes())
