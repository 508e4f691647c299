"""The rotate kernel turns every group of channels by the block of the row's expert."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.kernels.record import Tensor
from butterflyc.kernels.rotate import KERNEL, rotation
from butterflyc.targets.lanes_x86 import Avx2

from .harness import EVERY_LANES
from .meaning import blocks, floats, meaning, relative_error, results_of, spec_of

# b and `lanes`: whole vectors, neighbours, and what only single channels serve.
FORMS = [(4, 8), (2, 8), (8, 8), (4, 16), (4, 1), (2, 1), (8, 1), (4, 3), (16, 1)]


@pytest.mark.parametrize("lanes", EVERY_LANES)
@pytest.mark.parametrize(("b", "apart"), FORMS)
@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([np.int32, np.int64]))
@settings(max_examples=2)
def test_agrees_with_its_meaning(lanes, b, apart, times, experts, kind):
    """Blocks of every form and width rotate as the op says."""
    rng = np.random.default_rng(times)
    arrays = [
        floats(rng, 3, 1, times * apart * b),
        blocks(rng, experts, times * apart, b),
        rng.integers(0, experts, (3, 2)).astype(kind),
    ]
    (result,) = results_of(KERNEL, "rotate", arrays, lanes, {"lanes": apart})
    (wanted,) = meaning("rotate", arrays, {"lanes": apart}, double=True)
    assert relative_error(result, wanted) < 1e-6


@pytest.mark.parametrize(("rows", "experts"), [((), ()), ((2, 3), (2, 3)), ((3,), (2, 3))])
def test_rows_repeat_over_experts(rows, experts):
    """x broadcasts to the rows of the experts as in NumPy."""
    rng = np.random.default_rng(0)
    chosen = np.asarray(rng.integers(0, 4, experts))
    arrays = [floats(rng, *rows, 32), blocks(rng, 4, 8, 4), chosen]
    (result,) = results_of(KERNEL, "rotate", arrays, Avx2(), {"lanes": 8})
    (wanted,) = meaning("rotate", arrays, {"lanes": 8}, double=True)
    assert relative_error(result, wanted) < 1e-6


def test_vectors_are_used_where_groups_fit():
    """AVX2 rotates eight channels at a time with `lanes` 8 and 1, one at a time with 3."""
    vectors = {n: rotation(Avx2(), Tensor("f32", (1, 24, 4, 4)), n).vector for n in (8, 1, 3)}
    assert vectors == {8: 8, 1: 8, 3: 1}


def test_doubles_are_not_served():
    """The kernel serves float32 only."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 8))
    spec = spec_of("rotate", [x, blocks(rng, 1, 2, 4), np.zeros(1, np.int64)])
    assert not KERNEL.supports(spec, Avx2())
