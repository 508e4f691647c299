"""take and gather read the elements that their index names, and nothing outside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.kernels.take import KERNEL

from .batch import UNSHRUNK, Case, check_exact, run_batch
from .harness import EVERY_LANES, NUMPY
from .test_pointwise import COMPUTED, INTEGERS, sample

SIZES = st.sampled_from([1, 2, 3, 5, 8, 19])


@st.composite
def chosen(draw):
    """(op, shape, index shape, axis)"""
    shape = draw(st.lists(SIZES, min_size=1, max_size=4).filter(lambda s: np.prod(s) < 2000))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    if draw(st.booleans()):
        return "take", shape, draw(st.lists(st.integers(1, 4), max_size=2)), axis
    index = [draw(st.integers(1, n)) for n in shape]
    index[axis] = draw(st.integers(1, 9))
    return "gather", shape, index, axis


@pytest.mark.parametrize("lanes", EVERY_LANES)
@given(
    choices=st.lists(chosen(), min_size=12, max_size=12),
    dtypes=st.lists(st.sampled_from(COMPUTED), min_size=12, max_size=12),
    indices=st.lists(st.sampled_from(INTEGERS), min_size=12, max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=8, phases=UNSHRUNK)
def test_the_index_chooses(choices, dtypes, indices, seed, lanes):
    """take and gather along any axis, by any integer dtype, also from the end, are NumPy's."""
    rng = np.random.default_rng(seed)
    cases = []
    for (name, shape, index, axis), dtype, kind in zip(choices, dtypes, indices, strict=True):
        size = shape[axis]
        low = 0 if kind == "u8" else -size
        where = np.asarray(rng.integers(low, size, index)).astype(NUMPY[kind])
        cases.append(Case(name, [sample(dtype, rng, tuple(shape)), where], {"axis": axis}))
    check_exact(KERNEL, cases, lanes)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_an_index_out_of_range_reads_the_nearest_end(lanes):
    """No index, however wild, makes the kernel read outside its operand."""
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    wild = np.array([2**62, -(2**62), 4, -5, 2**32], np.int64)
    inside = Case("take", [x, np.zeros(5, np.int64)], {"axis": 0})
    ((found,),) = run_batch(KERNEL, [Case("take", [x, inside.arrays[1]], {"axis": 0})], lanes)
    np.testing.assert_array_equal(found, x[[0] * 5])
    ((found,),) = run_batch(KERNEL, [inside], lanes, [[x, wild]])
    np.testing.assert_array_equal(found, x[[3, 0, 3, 0, 3]])
