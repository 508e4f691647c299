"""The kernels of integer mode give the interpreter's integers, bit for bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir import Graph, Type, input_node, make
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.ir.ops import OPS
from butterflyc.kernels import all_kernels
from butterflyc.kernels.integer import OPERANDS
from butterflyc.kernels.integer_numbers import LIMITS, exp2_table, turn_table
from butterflyc.kernels.lanes import Lanes
from butterflyc.passes.select_kernels import spec_of

from .harness import Array, run

OCTAVE = np.array(exp2_table(), np.int16)
SOME = settings(max_examples=12, deadline=None)


def codes(rng: np.random.Generator, dtype: str, *shape: int) -> Array:
    """Random codes: any, or nothing but the largest and zero."""
    limit = LIMITS[dtype]
    some = rng.integers(-limit, limit + 1, shape)
    if rng.random() < 0.4:
        some = rng.choice([-limit, limit, 0], shape)
    return some.astype(dtype.replace("i", "int"))


def check(op: str, *arrays: Array, ternary: int = -1, **attributes: Any) -> None:
    """The kernel that serves the op agrees with the interpreter on ``arrays``.

    ``ternary`` is the number of the operand that holds ternary weights, if one does.
    """
    dtypes = [a.dtype.name.replace("int", "i") for a in arrays]
    if ternary >= 0:
        dtypes[ternary] = "ternary"
    types = [Type(dtype, a.shape) for dtype, a in zip(dtypes, arrays, strict=True)]
    inputs = [input_node(f"x{i}", type) for i, type in enumerate(types)]
    node = make(op, *inputs, **attributes)
    (wanted,) = interpret(Graph("g", tuple(inputs), (node,), {}), *arrays)
    spec = spec_of(node)
    (kernel,) = (k for k in all_kernels() if op in k.ops and k.supports(spec, Lanes()))
    (found,) = run(kernel, spec, arrays, Lanes())
    np.testing.assert_array_equal(found, wanted)


def test_operands_are_called_what_the_ops_call_them() -> None:
    """Printed C has the names of the op tables."""
    for op, names in OPERANDS.items():
        assert names == OPS[op].operands.replace("?", ""), op


@SOME
@given(st.integers(1, 5), st.integers(1, 20), st.integers(1, 70), st.booleans(), st.integers(0, 99))
def test_linear(rows: int, outputs: int, depth: int, bias: bool, seed: int) -> None:
    """Sums of products are exact, with a bias and without."""
    rng = np.random.default_rng(seed)
    added = (rng.integers(-(2**20), 2**20, outputs).astype(np.int32),) if bias else ()
    check("integer_linear", codes(rng, "i8", rows, depth), codes(rng, "i8", outputs, depth), *added)


@SOME
@given(
    st.sampled_from(["i8", "i16"]), st.booleans(), st.integers(0, 12), st.integers(0, 20),
    st.integers(0, 99),
)  # fmt: skip
def test_requantize(dtype: str, by_column: bool, drop: int, shift: int, seed: int) -> None:
    """Both roundings and the clipping are the interpreter's, up to the largest sums that fit."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-(2 ** (15 + drop)), 2 ** (15 + drop) + 1, (3, 4, 5)).astype(np.int32)
    multiplier = codes(rng, "i16", *((5,) if by_column else ()))
    check("requantize", x, multiplier, drop=drop, shift=shift, dtype=dtype)


@pytest.mark.parametrize("dtype", ["i8", "i16"])
def test_requantize_of_codes(dtype: str) -> None:
    """Codes go from one scale and width to another."""
    rng = np.random.default_rng(0)
    for to in LIMITS:
        check("requantize", codes(rng, dtype, 4, 6), codes(rng, "i16"), shift=12, dtype=to)


@SOME
@given(st.integers(0, 99))
def test_elements(seed: int) -> None:
    """Tables, sums that saturate and products, of broadcast operands too."""
    rng = np.random.default_rng(seed)
    check("lookup", codes(rng, "i8", 3, 7), codes(rng, "i8", 256))
    for op in ("saturating_add", "integer_mul"):
        check(op, codes(rng, "i16", 2, 3, 4), codes(rng, "i16", 2, 3, 4))
        check(op, codes(rng, "i16", 2, 3, 4), codes(rng, "i16", 4))
        check(op, codes(rng, "i16", 2, 3, 1), codes(rng, "i16", 4))


@SOME
@given(st.integers(0, 15), st.integers(0, 99))
def test_quotients(shift: int, seed: int) -> None:
    """Of broadcast operands too, by zero too, of the largest codes too."""
    rng = np.random.default_rng(seed)
    for shape in ((2, 3, 4), (2, 3, 1), (4,)):
        check("integer_divide", codes(rng, "i16", 2, 3, 4), codes(rng, "i16", *shape), shift=shift)
    few = rng.integers(-3, 4, (2, 1)).astype(np.int16)
    check("integer_divide", few, codes(rng, "i16", 5), shift=shift)
    check("integer_divide", codes(rng, "i16", 5), few, shift=shift)


@SOME
@given(st.integers(0, 99))
def test_curves(seed: int) -> None:
    """Any knots, at any code."""
    rng = np.random.default_rng(seed)
    check("interpolate", codes(rng, "i16", 3, 7), codes(rng, "i16", 257))


@SOME
@given(st.sampled_from([2, 4, 8]), st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
def test_rotations(size: int, groups: int, k: int, seed: int) -> None:
    """Blocks of any size turn the rows of each (token, expert), one row a token or one each."""
    rng = np.random.default_rng(seed)
    blocks = codes(rng, "i16", 5, groups, size, size)
    experts = rng.integers(0, 5, (3, k)).astype(np.int64)
    for rows in (1, k):
        x = codes(rng, "i8", 3, rows, groups * size)
        check("integer_rotate", x, blocks, experts, shift=14)


@SOME
@given(
    st.sampled_from(["i8", "i16"]), st.sampled_from([2, 4]), st.integers(1, 6), st.integers(1, 4),
    st.permutations(range(4)), st.permutations(range(4)), st.integers(0, 99),
)  # fmt: skip
def test_turns(
    dtype: str, turns: int, groups: int, k: int, taken: list[int], given: list[int], seed: int
) -> None:
    """Any angles in any order turn the rows of each (token, expert); the largest codes, too."""
    rng = np.random.default_rng(seed)
    lowest, highest = np.iinfo(dtype.replace("i", "int")).min, 2 ** (int(dtype[1:]) - 1)
    angles = rng.integers(lowest, highest, (5, groups, turns)).astype(dtype.replace("i", "int"))
    experts = rng.integers(0, 5, (3, k)).astype(np.int64)
    table = np.array(turn_table(dtype), np.int16)
    said = {"order": (*taken, *given), "multiplier": 16000 + 160 * seed, "shift": 21}
    for rows in (1, k):
        x = codes(rng, "i8", 3, rows, groups * 4)
        check("integer_turn", x, angles, experts, table, **said)
        check("integer_turn", np.full_like(x, -127), angles, experts, table, **said)


@SOME
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(0, 99))
def test_combine(tokens: int, k: int, channels: int, seed: int) -> None:
    """Gates of either sign, the largest ones too."""
    rng = np.random.default_rng(seed)
    check("integer_combine", codes(rng, "i8", tokens, k, channels), codes(rng, "i16", tokens, k))


def fused(rng: np.random.Generator, columns: int) -> tuple[Array, dict[str, Any]]:
    """Multipliers, one or one a column, and the shifts that go with sums of 2**21."""
    multiplier = codes(rng, "i16", *((columns,) if rng.random() < 0.5 else ()))
    return multiplier, {"drop": int(rng.integers(6, 12)), "shift": int(rng.integers(0, 20))}


@SOME
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 70), st.integers(0, 99))
def test_quantized_linear(rows: int, outputs: int, depth: int, seed: int) -> None:
    """The codes of a product, and those added to a residual, are the interpreter's."""
    rng = np.random.default_rng(seed)
    x, w = codes(rng, "i8", rows, depth), codes(rng, "i8", outputs, depth)
    added = rng.integers(-(2**20), 2**20, outputs).astype(np.int32)
    multiplier, shifts = fused(rng, outputs)
    for dtype in ("i8", "i16"):
        check("quantized_linear", x, w, added, multiplier, dtype=dtype, **shifts)
    residual = codes(rng, "i16", rows, outputs)
    check("quantized_linear", x, w, added, multiplier, residual, dtype="i16", **shifts)


@SOME
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(0, 99))
def test_quantized_combine(tokens: int, k: int, channels: int, seed: int) -> None:
    """The codes of sums over experts are the interpreter's."""
    rng = np.random.default_rng(seed)
    multiplier, shifts = fused(rng, channels)
    # Gates are shares of one: their sum is at most 2**15.
    gates = codes(rng, "i16", tokens, k) // np.int16(k)
    for dtype in ("i8", "i16"):
        values = codes(rng, "i8", tokens, k, channels)
        check("quantized_combine", values, gates, multiplier, dtype=dtype, **shifts)


@SOME
@given(st.integers(1, 5), st.integers(1, 30), st.integers(1, 256), st.integers(0, 99))
def test_quantized_ternary(rows: int, outputs: int, depth: int, seed: int) -> None:
    """The codes of ternary products, with a table and without, are the interpreter's."""
    rng = np.random.default_rng(seed)
    x = codes(rng, "i8", rows, depth)
    w = rng.integers(-1, 2, (outputs, depth)).astype(np.int8)
    multiplier, shifts = fused(rng, outputs)
    for table in ((), (codes(rng, "i8", 256),)):
        check("quantized_ternary", x, w, multiplier, *table, ternary=1, **shifts)


@SOME
@given(st.sampled_from(["i8", "i16"]), st.integers(1, 300), st.integers(0, 22), st.integers(0, 99))
def test_layer_norm(dtype: str, width: int, shift: int, seed: int) -> None:
    """Rows of any width and size, constant ones and the largest ones, with any eps."""
    rng = np.random.default_rng(seed)
    x = codes(rng, dtype, 4, width)
    x[1] >>= rng.integers(0, 8)
    x[2] = x[2, 0]
    bias = rng.integers(-(2**29), 2**29, width).astype(np.int32)
    gain = codes(rng, "i16", width)
    eps = {"eps": int(rng.integers(0, 2**15)), "eps_shift": int(rng.integers(-15, 31))}
    for chosen in ({}, eps):
        check("integer_layer_norm", x, gain, bias, shift=shift, **chosen)


def decays(draw: st.DrawFn) -> dict[str, int]:
    """Scales of scores, as the quantize pass makes them."""
    steps = 2.0 ** draw(st.floats(-8, 8))
    shift = max(0, min(17, math.floor(math.log2(32767 / steps))))
    return {
        "multiplier": max(1, round(steps * 2**shift)),
        "cap": math.ceil(4096 / steps),
        "shift": shift,
    }


DECAYS = st.composite(decays)()


@SOME
@given(st.sampled_from(["i16", "i32"]), st.integers(1, 40), DECAYS, st.integers(0, 99))
def test_softmax(dtype: str, size: int, decay: dict[str, int], seed: int) -> None:
    """Rows of one number and of many, near ones and far ones."""
    rng = np.random.default_rng(seed)
    x = codes(rng, "i16", 3, size).astype(dtype.replace("i", "int"))
    check("integer_softmax", x, OCTAVE, **decay)


@SOME
@given(st.integers(1, 20), st.integers(1, 20), DECAYS, st.booleans(), st.integers(0, 99))
def test_attention(queries: int, keys: int, decay: dict[str, int], causal: bool, seed: int) -> None:
    """Any number of queries and keys, each to all or to those in front of it."""
    rng = np.random.default_rng(seed)
    keys = queries if causal else keys
    q = codes(rng, "i8", 1, 2, queries, 8)
    k, v = codes(rng, "i8", 1, 2, keys, 8), codes(rng, "i8", 1, 2, keys, 5)
    check("integer_attention", q, k, v, OCTAVE, causal=causal, **decay)
