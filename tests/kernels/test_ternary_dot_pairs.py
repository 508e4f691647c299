"""The product of 7-bit codes by tables is exact, at any shape and for the worst inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir.ops.butterfly import ternary_dot_meaning
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.record import Spec, Tensor
from butterflyc.kernels.ternary_dot import KERNEL as BY_PRODUCTS
from butterflyc.kernels.ternary_dot_pairs import KERNEL
from butterflyc.targets.lanes_in_order import NeonInOrder
from butterflyc.targets.lanes_neon import Neon, NeonDot

from .harness import run

BOTH = pytest.mark.parametrize("lanes", [Neon(), NeonInOrder()], ids=lambda lanes: lanes.name)


def spec_of(codes, w, bits=7, **parameters):
    return Spec(
        "ternary_dot",
        (("bits", bits),),
        (Tensor("i8", codes.shape), Tensor("ternary", w.shape)),
        (Tensor("i32", (*codes.shape[:-1], len(w))),),
        tuple(sorted(parameters.items())),
    )


def check(codes, w, lanes, **parameters):
    """The kernel gives codes @ w.T."""
    (result,) = run(KERNEL, spec_of(codes, w, **parameters), [codes, w], lanes)
    np.testing.assert_array_equal(result, ternary_dot_meaning(codes, w))


def random_operands(rows, outputs, depth, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-63, 64, (rows, depth), np.int8)
    return codes, rng.integers(-1, 2, (outputs, depth), np.int8)


@BOTH
@given(st.integers(1, 130), st.integers(1, 150), st.integers(1, 1100), st.integers(0, 9))
@settings(max_examples=20)
def test_is_exact_at_any_shape(lanes, rows, outputs, depth, seed):
    """The kernel gives codes @ w.T, whatever the shape."""
    check(*random_operands(rows, outputs, depth, seed), lanes)


@BOTH
@pytest.mark.parametrize(
    ("rows", "outputs", "depth"),
    [(1, 64, 256), (1, 65, 16), (65, 33, 256), (130, 97, 20), (2, 31, 7), (5, 32, 512), (4, 8, 1)],
)
def test_is_exact_at_the_edges(lanes, rows, outputs, depth):
    """Whole strips, one more, one less; one row, whole tiles, a row more; few columns."""
    check(*random_operands(rows, outputs, depth, 0), lanes)


@BOTH
@pytest.mark.parametrize(("rows", "depth"), [(1, 4096), (5, 2048), (1, 513), (6, 511), (2, 1)])
@pytest.mark.parametrize(("code", "weight"), [(63, 1), (-63, 1), (63, -1), (63, 0)])
def test_is_exact_for_the_worst_inputs(lanes, rows, depth, code, weight):
    """All codes 63 and all weights 1 overflow no accumulator, at any K."""
    codes, w = np.full((rows, depth), code, np.int8), np.full((9, depth), weight, np.int8)
    check(codes, w, lanes)


def test_every_way_gives_the_same_sums():
    """Every choice of parameters is exact."""
    codes, w = random_operands(35, 70, 300, 0)
    for parameters in KERNEL.space(spec_of(codes, w), Neon()):
        check(codes, w, Neon(), **parameters)


def test_leading_axes_are_rows():
    """Codes [2, 3, K] give sums [2, 3, N]."""
    codes, w = random_operands(6, 7, 20, 0)
    check(codes.reshape(2, 3, 20), w, Neon())


def test_serves_seven_bits_where_there_are_look_ups():
    """Codes of 8 bits, whose sums of two do not fit in a byte, and other lanes are left alone."""
    codes, w = random_operands(4, 64, 64, 0)
    assert KERNEL.supports(spec_of(codes, w), Neon())
    assert not KERNEL.supports(spec_of(codes, w, bits=8), Neon())
    for lanes in (Lanes(), NeonDot()):
        assert not KERNEL.supports(spec_of(codes, w), lanes)


@pytest.mark.parametrize(("outputs", "tables"), [(1024, True), (128, True), (8, False), (4, False)])
@BOTH
def test_costs_less_where_tables_are_read_often(lanes, outputs, tables):
    """A table pays from about a hundred outputs on; for fewer, products cost less in the model."""
    spec = spec_of(*random_operands(65, outputs, 256, 0))
    assert (KERNEL.cost(spec, lanes) < BY_PRODUCTS.cost(spec, lanes)) == tables
