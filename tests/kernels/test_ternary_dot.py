"""The integer ternary product is exact, at any shape and for the worst inputs there are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir.ops.butterfly import ternary_dot_meaning
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.record import Spec, Tensor
from butterflyc.kernels.ternary_dot import KERNEL
from butterflyc.targets.lanes_x86 import Avx2

from .harness import INTEGER_LANES, run


def dot(codes, w, lanes, **parameters):
    """The kernel's result for codes [..., K] and w [N, K]."""
    spec = Spec(
        "ternary_dot",
        (),
        (Tensor("i8", codes.shape), Tensor("ternary", w.shape)),
        (Tensor("i32", (*codes.shape[:-1], len(w))),),
        tuple(sorted(parameters.items())),
    )
    return run(KERNEL, spec, [codes, w], lanes)[0]


def random_operands(rows, outputs, depth, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-127, 128, (rows, depth), np.int8)
    return codes, rng.integers(-1, 2, (outputs, depth), np.int8)


@pytest.mark.parametrize("lanes", INTEGER_LANES)
@given(st.integers(1, 130), st.integers(1, 150), st.integers(1, 1100), st.integers(0, 9))
@settings(max_examples=10)
def test_is_exact_at_any_shape(lanes, rows, outputs, depth, seed):
    """The kernel gives codes @ w.T, whatever the shape."""
    codes, w = random_operands(rows, outputs, depth, seed)
    np.testing.assert_array_equal(dot(codes, w, lanes), ternary_dot_meaning(codes, w))


@pytest.mark.parametrize("lanes", INTEGER_LANES)
@pytest.mark.parametrize(("rows", "depth"), [(1, 4096), (5, 4096), (1, 257), (6, 255), (2, 1)])
@pytest.mark.parametrize(("code", "weight"), [(127, 1), (-127, 1), (127, -1), (127, 0)])
def test_is_exact_for_the_worst_inputs(lanes, rows, depth, code, weight):
    """All codes 127 and all weights 1 overflow no accumulator, at any K."""
    codes = np.full((rows, depth), code, np.int8)
    w = np.full((9, depth), weight, np.int8)
    np.testing.assert_array_equal(dot(codes, w, lanes), ternary_dot_meaning(codes, w))


@pytest.mark.parametrize("lanes", INTEGER_LANES)
def test_every_way_gives_the_same_sums(lanes):
    """Every choice of parameters is exact, for few rows and for many."""
    for rows in (3, 11):
        codes, w = random_operands(rows, 50, 300, rows)
        spec = Spec(
            "ternary_dot",
            (),
            (Tensor("i8", codes.shape), Tensor("ternary", w.shape)),
            (Tensor("i32", (rows, 50)),),
        )
        for parameters in KERNEL.space(spec, lanes):
            result = dot(codes, w, lanes, **parameters)
            np.testing.assert_array_equal(result, ternary_dot_meaning(codes, w))


def test_leading_axes_are_rows():
    """Codes [2, 3, K] give sums [2, 3, N]."""
    codes, w = random_operands(6, 7, 20, 0)
    result = dot(codes.reshape(2, 3, 20), w, Avx2())
    np.testing.assert_array_equal(result.reshape(6, 7), ternary_dot_meaning(codes, w))


@pytest.mark.parametrize("lanes", [Lanes(), Avx2()], ids=lambda lanes: lanes.name)
def test_cost_grows_with_the_work(lanes):
    """Twice the outputs cost twice as much in the model."""
    specs = [
        Spec("ternary_dot", (), (Tensor("i8", (3, 64)), Tensor("ternary", (n, 64))), ())
        for n in (8, 16)
    ]
    assert 2 * KERNEL.cost(specs[0], lanes) == KERNEL.cost(specs[1], lanes)
