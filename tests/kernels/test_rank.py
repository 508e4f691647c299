"""Orders of whole rows are what the butterfly table means, ties and NaN included."""

from __future__ import annotations

import numpy as np
import pytest

from butterflyc.kernels.rank import KERNEL
from butterflyc.kernels.record import Spec, Tensor

from .batch import Case
from .harness import EVERY_LANES, run
from .test_top_k import ELEMENTS


@pytest.mark.parametrize("lanes", EVERY_LANES)
@pytest.mark.parametrize(("shape", "k"), [((3, 21), 21), ((2, 2, 17), 9), ((1,), 1)])
def test_every_rank(shape, k, lanes):
    """Values and places are those of a stable descending sort, whole or cut after k."""
    rng = np.random.default_rng(k)
    cases = [Case("top_k", [make(rng, shape)], {"k": k}) for make in ELEMENTS.values()]
    cases.append(Case("top_k", [rng.integers(-(2**62), 2**62, shape)], {"k": k}))
    for case in cases:
        found = run(KERNEL, case.spec, case.arrays, lanes)
        for mine, wanted in zip(found, case.wanted(), strict=True):
            np.testing.assert_array_equal(mine, wanted, err_msg=str(case))


def test_what_is_not_supported():
    """Bools have no order here."""
    x, y = Tensor("bool", (32,)), Tensor("i64", (9,))
    assert not KERNEL.supports(Spec("top_k", (("k", 9),), (x,), (x, y)), EVERY_LANES[0])
