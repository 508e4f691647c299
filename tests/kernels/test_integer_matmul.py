"""Integer products are exact, wrapping included."""

from __future__ import annotations

import numpy as np
import pytest

from butterflyc.kernels.integer_matmul import KERNEL

from .batch import Case, check_exact
from .harness import EVERY_LANES
from .test_pointwise import integers

SHAPES = [((4, 3), (3, 5)), ((2, 4, 3), (3, 2)), ((2, 1, 4, 3), (3, 3, 2)), ((1, 7), (7, 1))]


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_products(lanes):
    """Matrices of every integer dtype, in batches that broadcast, and rows by a matrix."""
    rng = np.random.default_rng(0)
    cases = []
    for dtype in ("i8", "u8", "i16", "i32", "i64"):
        cases += [
            Case("matmul", [integers(dtype, rng, a), integers(dtype, rng, b)]) for a, b in SHAPES
        ]
        rows = [integers(dtype, rng, shape) for shape in ((2, 3, 4), (5, 4))]
        cases += [Case("linear", rows), Case("linear", [rows[0][0, 0], rows[1]])]
    check_exact(KERNEL, cases, lanes)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_what_is_not_supported(lanes):
    """Floats, a bias and an activation are for the kernel of linear."""
    x, w, b = (np.ones(shape, np.int32) for shape in ((2, 3), (4, 3), (4,)))
    assert KERNEL.supports(Case("linear", [x, w]).spec, lanes)
    assert not KERNEL.supports(Case("linear", [x, w, b]).spec, lanes)
    assert not KERNEL.supports(Case("linear", [x, w], {"activation": "relu"}).spec, lanes)
    assert not KERNEL.supports(Case("linear", [np.float32(x), np.float32(w)]).spec, lanes)
