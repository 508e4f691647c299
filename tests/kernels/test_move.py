"""Moving ops put every element where the shape table says, for every dtype."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.move import KERNEL
from butterflyc.kernels.record import Spec, Tensor

from .batch import UNSHRUNK, Case, check_exact
from .harness import EVERY_LANES
from .test_pointwise import COMPUTED, sample

SIZES = st.sampled_from([1, 2, 3, 4, 7, 8, 35])


@st.composite
def moved(draw):
    """An op that moves: (name, shapes of its operands, attributes)."""
    shape = draw(st.lists(SIZES, min_size=1, max_size=4).filter(lambda s: np.prod(s) < 3000))
    rank = len(shape)
    axis = draw(st.integers(-rank, rank - 1))
    name = draw(st.sampled_from(["reshape", "transpose", "broadcast", "slice", "concat"]))
    if name == "reshape":
        return name, [shape], {"shape": tuple(draw(st.permutations(shape)))}
    if name == "transpose":
        return name, [shape], {"order": tuple(draw(st.permutations(range(rank))))}
    if name == "broadcast":
        kept = [n if draw(st.booleans()) else 1 for n in shape]
        return name, [kept[draw(st.integers(0, rank)) :]], {"shape": tuple(shape)}
    if name == "slice":
        start = draw(st.integers(0, shape[axis] - 1))
        stop = draw(st.integers(start + 1, shape[axis]))
        step = draw(st.integers(1, 3))
        return name, [shape], {"axis": axis, "start": start, "stop": stop, "step": step}
    parts = []
    for size in draw(st.lists(SIZES, min_size=1, max_size=3)):
        part = list(shape)
        part[axis] = size
        parts.append(part)
    return name, parts, {"axis": axis}


@pytest.mark.parametrize("lanes", EVERY_LANES)
@given(
    moves=st.lists(moved(), min_size=16, max_size=16),
    dtypes=st.lists(st.sampled_from(COMPUTED), min_size=16, max_size=16),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=8, phases=UNSHRUNK)
def test_elements_go_where_they_should(moves, dtypes, seed, lanes):
    """reshape, transpose, broadcast, slice and concat of any shape are NumPy's."""
    rng = np.random.default_rng(seed)
    cases = [
        Case(name, [np.asarray(sample(dtype, rng, tuple(s))) for s in shapes], attributes)
        for (name, shapes, attributes), dtype in zip(moves, dtypes, strict=True)
    ]
    check_exact(KERNEL, cases, lanes)


@pytest.mark.parametrize("lanes", EVERY_LANES)
def test_a_scalar_is_moved(lanes):
    """A tensor without axes can be reshaped and repeated."""
    x = np.float32(2.5)
    cases = [Case("reshape", [np.asarray(x)], {"shape": (1, 1)})]
    cases += [Case("broadcast", [np.asarray(x)], {"shape": (3, 11)})]
    cases += [Case("reshape", [np.float32([[x]])], {"shape": ()})]
    check_exact(KERNEL, cases, lanes)


def test_an_empty_tensor_is_refused():
    """A tensor of no elements needs no kernel, and gets none."""
    empty = Tensor("f32", (0, 4))
    spec = Spec("reshape", (("shape", (4, 0)),), (empty,), (Tensor("f32", (4, 0)),))
    assert not KERNEL.supports(spec, Lanes())
