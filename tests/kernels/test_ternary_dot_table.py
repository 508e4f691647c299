"""Ternary products by tables give the exact sums, for any number of rows and any shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Type, input_node, make
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.kernels.integer_numbers import largest_of
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.record import Spec, Tensor
from butterflyc.kernels.ternary_dot_table import KERNEL, supports
from butterflyc.passes.select_kernels import spec_of

from .harness import Array, run


def check(x: Array, w: Array, **parameters: int) -> None:
    operands = Tensor("i8", x.shape), Tensor("ternary", w.shape)
    results = (Tensor("i32", (*x.shape[:-1], len(w))),)
    spec = Spec("ternary_dot", (), operands, results, tuple(sorted(parameters.items())))
    (found,) = run(KERNEL, spec, [x, w], Lanes())
    np.testing.assert_array_equal(found, x.astype(np.int32) @ w.T.astype(np.int32))


TERNARY = Spec("ternary_dot", (), (Tensor("i8", (1, 9)), Tensor("ternary", (1, 9))), ())
WAYS = KERNEL.space(TERNARY, Lanes())


def same_as_meaning(op: str, arrays: list[Array], **attributes: Any) -> None:
    """The kernel gives what the interpreter does."""
    types = [Type(a.dtype.name.replace("int", "i"), a.shape) for a in arrays]
    inputs = [input_node(f"x{i}", type) for i, type in enumerate(types)]
    node = make(op, *inputs, **attributes)
    (wanted,) = interpret(Graph("g", tuple(inputs), (node,), {}), *arrays)
    (found,) = run(KERNEL, spec_of(node), arrays, Lanes())
    np.testing.assert_array_equal(found, wanted)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 7), st.integers(1, 30), st.integers(1, 256), st.integers(0, 99))
def test_products_are_exact(rows: int, outputs: int, depth: int, seed: int) -> None:
    """Random rows and weights; the last row of an odd number has no partner."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-127, 128, (rows, depth)).astype(np.int8)
    check(x, rng.integers(-1, 2, (outputs, depth)).astype(np.int8))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("parameters", WAYS, ids=str)
def test_the_largest_sums(sign: int, parameters: dict[str, int]) -> None:
    """256 columns of the largest codes, of one sign in a row, by weights that are all 1 or -1."""
    x = np.stack([np.full(256, 127), np.full(256, -127), np.full(256, 127)]).astype(np.int8)
    check(x, np.full((600, 256), sign, np.int8), **parameters)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 20), st.integers(1, 600), st.integers(1, 5), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_weights_of_some_digits(
    rows: int, outputs: int, depth: int, planes: int, bias: bool, seed: int
) -> None:
    """Exact sums by weights of 1 to 5 digits, of more columns than a lane holds, too."""
    rng = np.random.default_rng(seed)
    most = largest_of(planes)
    w = rng.integers(-most, most + 1, (outputs, depth))
    added = [rng.integers(-(2**20), 2**20, outputs).astype(np.int32)] if bias else []
    x = (
        rng.choice([-127, 0, 127], (rows, depth))
        if seed % 2
        else rng.integers(-127, 128, (rows, depth))
    )
    same_as_meaning("integer_linear", [x.astype(np.int8), w.astype(np.int8), *added], planes=planes)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 9), st.integers(1, 300), st.integers(1, 5), st.integers(0, 99)
)
def test_codes_of_digits(rows: int, outputs: int, depth: int, planes: int, seed: int) -> None:
    """Codes of sums, and those added to a residual, are the interpreter's."""
    rng = np.random.default_rng(seed)
    most = largest_of(planes)
    arrays = [
        rng.integers(-127, 128, (rows, depth)).astype(np.int8),
        rng.integers(-most, most + 1, (outputs, depth)).astype(np.int8),
        rng.integers(-(2**20), 2**20, outputs).astype(np.int32),
        rng.integers(-32767, 32768, (outputs,) if seed % 2 else ()).astype(np.int16),
    ]
    shifts = {"drop": int(rng.integers(8, 12)), "shift": int(rng.integers(0, 20)), "planes": planes}
    for dtype in ("i8", "i16"):
        same_as_meaning("quantized_linear", arrays, dtype=dtype, **shifts)
    residual = rng.integers(-32767, 32768, (rows, outputs)).astype(np.int16)
    same_as_meaning("quantized_linear", [*arrays, residual], dtype="i16", **shifts)


@pytest.mark.parametrize("parameters", WAYS, ids=str)
def test_ternary_products_of_many_columns(parameters: dict[str, int]) -> None:
    """1,100 columns of the largest codes: parts of columns are added up, padding is none."""
    x = np.stack([np.full(1100, 127), np.full(1100, -127), np.full(1100, 127)]).astype(np.int8)
    check(x, np.ones((9, 1100), np.int8), **parameters)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("depth", [256, 600])
@pytest.mark.parametrize("planes", [1, 3, 5])
def test_the_largest_weights(planes: int, depth: int, sign: int) -> None:
    """The largest codes by the largest weights, of one sign in a row; digits are alike then."""
    x = np.stack([np.full(depth, 127), np.full(depth, -127), np.full(depth, 127)]).astype(np.int8)
    w = np.full((9, depth), sign * largest_of(planes), np.int8)
    same_as_meaning("integer_linear", [x, w], planes=planes)


def test_what_it_does_not_serve() -> None:
    """Weights of 8 bits of which nobody says how many digits they have."""
    for planes in (0, 3):
        operands = Tensor("i8", (2, 8)), Tensor("i8", (4, 8))
        spec = Spec("integer_linear", (("planes", planes),), operands, (Tensor("i32", (2, 4)),))
        assert supports(spec, Lanes()) is bool(planes)
