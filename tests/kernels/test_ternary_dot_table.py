"""Ternary products by tables give the exact sums, for any number of rows and any shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.record import Spec, Tensor
from butterflyc.kernels.ternary_dot_table import KERNEL, supports

from .harness import Array, run


def check(x: Array, w: Array, **parameters: int) -> None:
    operands = Tensor("i8", x.shape), Tensor("ternary", w.shape)
    results = (Tensor("i32", (*x.shape[:-1], len(w))),)
    spec = Spec("ternary_dot", (), operands, results, tuple(sorted(parameters.items())))
    (found,) = run(KERNEL, spec, [x, w], Lanes())
    np.testing.assert_array_equal(found, x.astype(np.int32) @ w.T.astype(np.int32))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 7), st.integers(1, 30), st.integers(1, 256), st.integers(0, 99))
def test_products_are_exact(rows: int, outputs: int, depth: int, seed: int) -> None:
    """Random rows and weights; the last row of an odd number has no partner."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-127, 128, (rows, depth)).astype(np.int8)
    check(x, rng.integers(-1, 2, (outputs, depth)).astype(np.int8))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("parameters", KERNEL.space(None, Lanes()), ids=str)  # type: ignore[arg-type]
def test_the_largest_sums(sign: int, parameters: dict[str, int]) -> None:
    """256 columns of the largest codes, of one sign in a row, by weights that are all 1 or -1."""
    x = np.stack([np.full(256, 127), np.full(256, -127), np.full(256, 127)]).astype(np.int8)
    check(x, np.full((600, 256), sign, np.int8), **parameters)


def test_what_it_does_not_serve() -> None:
    """Rows of more than 256 codes would not fit: two sums share 32 bits."""
    for depth, served in ((256, True), (257, False)):
        operands = Tensor("i8", (2, depth)), Tensor("ternary", (4, depth))
        spec = Spec("ternary_dot", (), operands, (Tensor("i32", (2, 4)),))
        assert supports(spec, Lanes()) is served
