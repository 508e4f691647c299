"""What kernels are tried on makes them show what they do, and a wrong result is found."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from butterflyc.compiler.ir.ops.deep_layer import turn_layers
from butterflyc.compiler.ir.types import FLOATS, STORAGE
from butterflyc.compiler.run.kernel import bind, spec_for
from butterflyc.kernels import all_kernels
from butterflyc.kernels.integer_numbers import LIMITS, largest_of
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.record import Spec, Tensor, one_way
from butterflyc.tuning.operands import error_of, meaning, operands

from ..kernels.harness import EVERY_LANES, TARGETS

# Scalar, and AVX2 where this machine has it.
HERE = [lanes for lanes in EVERY_LANES if lanes.id in ("scalar", "avx2")]
SHIFTS = {"drop": 3, "shift": 17}


def tensor(text: str) -> Tensor:
    """``"f32 2 3"`` as a type and a shape."""
    dtype, *sizes = text.split()
    return Tensor(dtype, tuple(map(int, sizes)))


def spec(op: str, given: str, made: str, **attributes: Any) -> Spec:
    types = [[tensor(text) for text in side.split(", ")] for side in (given, made)]
    return spec_for(op, *types, **attributes)


EXPERTS = "f32 5 32, f32 3 8 4 4, ternary 64 32, f32 64, f32 64, f32 5 2, i64 5 2, f32 3 16 4 4"
LAYER: dict[str, Any] = {"activation": "gelu_poly"}
SPECS = {
    "linear": spec("linear", "f32 7 40, f32 24 40, f32 24", "f32 7 24", activation="gelu"),
    "linear of counts": spec("linear", "i64 7 40, i64 24 40", "i64 7 24"),
    "matmul": spec("matmul", "f32 2 7 40, f32 2 40 24", "f32 2 7 24"),
    "top_k": spec("top_k", "f32 7 12", "f32 7 2, i64 7 2", k=2),
    "top_k of codes": spec("top_k", "i16 7 12", "i16 7 2, i64 7 2", k=2),
    "qkv_attention": spec("qkv_attention", "f32 1 9 48", "f32 1 9 16", heads=2, scale=0.35),
    "attention": spec(
        "attention", "f32 1 2 9 8, f32 1 2 9 8, f32 1 2 9 8", "f32 1 2 9 8", scale=0.35
    ),
    "ternary_matmul": spec("ternary_matmul", "f32 7 40, ternary 24 40, f32 ", "f32 7 24"),
    "ternary_dot": spec("ternary_dot", "i8 7 40, ternary 24 40", "i32 7 24"),
    "ternary_dot of 7 bits": spec("ternary_dot", "i8 7 40, ternary 24 40", "i32 7 24", bits=7),
    "butterfly_experts": spec("butterfly_experts", EXPERTS, "f32 5 64", **LAYER),
    "butterfly_experts of codes": spec(
        "butterfly_experts", EXPERTS, "f32 5 64", activation_bits=8, **LAYER
    ),
    "integer_linear": spec("integer_linear", "i8 7 40, i8 24 40, i32 24", "i32 7 24", planes=3),
    "quantized_linear": spec(
        "quantized_linear", "i8 7 40, i8 24 40, i32 24, i16 24", "i8 7 24", planes=4, **SHIFTS
    ),
    "quantized_linear and a residual": spec(
        "quantized_linear", "i8 7 40, i8 24 40, i32 24, i16 , i16 7 24", "i16 7 24",
        dtype="i16", **SHIFTS,
    ),
    "quantized_ternary": spec(
        "quantized_ternary", "i8 7 40, ternary 24 40, i16 , i8 256", "i8 7 24", **SHIFTS
    ),
    "quantized_combine": spec(
        "quantized_combine", "i8 7 2 40, i16 7 2, i16 40", "i8 7 40", drop=8, shift=20
    ),
    "integer_rotate": spec(
        "integer_rotate", "i8 5 1 32, i16 3 8 4 4, i64 5 2", "i8 5 2 32", shift=15
    ),
    "integer_softmax": spec(
        "integer_softmax", "i16 7 12, i16 256", "i16 7 12", multiplier=9426, cap=65534, shift=19
    ),
    "integer_attention": spec(
        "integer_attention", "i8 1 2 9 16, i8 1 2 9 16, i8 1 2 9 16, i16 256", "i8 1 2 9 16",
        multiplier=3652, cap=258064, shift=18,
    ),
    "integer_layer_norm": spec(
        "integer_layer_norm", "i16 7 40, i16 40, i32 40", "i8 7 40", shift=22
    ),
    "requantize": spec("requantize", "i32 7 40, i16 40", "i8 7 40", **SHIFTS),
    "integer_divide": spec("integer_divide", "i16 7 40, i16 7 1", "i16 7 40", shift=3),
    "quantize_rows": spec("quantize_rows", "f32 7 40", "i8 7 40, f32 7 1"),
    "dequantize": spec("dequantize", "i32 7 40, f32 7 1, f32 40", "f32 7 40"),
    "combine": spec("combine", "f32 7 2 40, f32 7 2", "f32 7 40"),
    "rotate": spec("rotate", "f32 5 1 32, f32 3 8 4 4, i32 5 2", "f32 5 2 32"),
    "take": spec("take", "i8 12 40, i64 7", "i8 7 40", axis=0),
    "where": spec("where", "bool 7 40, f32 7 40, f32 7 40", "f32 7 40"),
    "log": spec("log", "f32 7 40", "f32 7 40"),
}  # fmt: skip
EVERY = pytest.mark.parametrize("asked", SPECS.values(), ids=SPECS)


def laid_out(asked: Spec, lanes: Lanes) -> Spec:
    """Rotations of floats in the order that the vectors of ``lanes`` want."""
    width = lanes.float_lanes
    given = {"lanes_in": width, "lanes_out": width} if asked.op == "butterfly_experts" else {}
    return spec_for(asked.op, asked.operands, asked.results, **dict(asked.attributes) | given)


def several_ways() -> set[str]:
    """The ops that are computed in more than one way."""
    counts: dict[str, int] = defaultdict(int)
    for kernel in all_kernels():
        for op in kernel.ops:
            counts[op] += 1 if kernel.space is one_way else 2
    return {op for op, count in counts.items() if count > 1}


def test_all_that_has_several_ways_is_tried() -> None:
    """No op that is tuned is missing from what the tests here ask for."""
    assert several_ways() <= {asked.op for asked in SPECS.values()}


@pytest.mark.parametrize("lanes", HERE)
@EVERY
def test_kernels_are_right(asked: Spec, lanes: Lanes) -> None:
    """Every kernel that serves an op gives what it means, and what is not that is found."""
    asked = laid_out(asked, lanes)
    arrays = operands(asked)
    wanted = meaning(asked, arrays)
    able = [k for k in all_kernels() if asked.op in k.ops and k.supports(asked, lanes)]
    for kernel in able:
        call = bind(kernel, asked, arrays, lanes, TARGETS[lanes.name])
        call()
        assert error_of(call.results, wanted, asked) == "", kernel.name
        for i, result in enumerate(call.results):
            wrong = list(call.results)
            wrong[i] = changed(result)
            assert error_of(wrong, wanted, asked).startswith(f"result {i} is "), kernel.name
    assert able, "no kernel serves it"


def changed(array: np.ndarray) -> np.ndarray:
    """The same but for one number: by one, or by a hundredth of all of them."""
    other = array.copy()
    by = np.linalg.norm(array) / 100 + 1e-3 if array.dtype.kind == "f" else 1
    other.reshape(-1)[array.size // 2] += by
    return other


@EVERY
def test_results_tell_something(asked: Spec) -> None:
    """Less than half of the numbers are 0, or as large as a code can be; nothing is infinite."""
    for result, held in zip(meaning(asked, operands(asked)), asked.results, strict=True):
        most = LIMITS.get(held.dtype, math.inf)
        if held.dtype != "i64":  # places, of which 0 is one
            assert np.mean(result == 0) < 0.5
        assert np.mean(np.abs(result) >= most) < 0.5
        assert np.isfinite(result).all()
        assert result.dtype.kind == "f" or result.dtype == STORAGE[held.dtype]
        assert held.dtype in FLOATS or result.std() > min(1, most / 100)


@EVERY
def test_operands_fit_their_types(asked: Spec) -> None:
    """They are what the spec says, always the same of a seed, and others of another."""
    first, again, other = operands(asked), operands(asked), operands(asked, 1)
    for array, same, held in zip(first, again, asked.operands, strict=True):
        assert array.shape == held.shape
        assert array.dtype == STORAGE[held.dtype]
        np.testing.assert_array_equal(array, same)
    assert not np.array_equal(first[0], other[0])


def test_what_operands_are() -> None:
    """Codes of 7 bits, weights of some digits, places and rotations are within what is said."""
    codes, weights = operands(SPECS["ternary_dot of 7 bits"])
    assert (codes.min(), codes.max()) == (-63, 63)
    assert set(np.unique(weights)) == {-1, 0, 1}
    assert np.abs(operands(SPECS["integer_linear"])[1]).max() == largest_of(3)
    x, blocks, _, scale, _, gates, experts, _ = operands(SPECS["butterfly_experts"])
    turned_back = blocks @ blocks.swapaxes(-1, -2)
    assert np.abs(turned_back - np.eye(4)).max() < 1e-5
    assert 0 <= experts.min() < experts.max() < 3
    assert 0.02 < scale.min() < scale.max() < 0.08
    assert 0 < gates.min() < gates.max() < 1
    assert 0.8 < x.std() < 1.2


LAYER_OF_GPUS = "ternary 32 16, f32 , f32 32, f32 5 2, i64 5 2"
TURNED = {"dtype": "f16", "activation": "gelu"}


def test_turns_of_gpus_keep_lengths() -> None:
    """Pairs are of angles; partners of many layers are each other's, and turn by one angle."""
    given = f"f32 5 16, f16 3 4 4 2, {LAYER_OF_GPUS}, f16 3 8 4 2, f16 16 32"
    pairs = operands(spec("butterfly_layer", given, "f32 5 16", **TURNED))[1]
    np.testing.assert_allclose(np.hypot(*np.moveaxis(pairs, -1, 0)), 1, atol=2e-3)
    given = f"f32 5 12, f16 3 4 16 2, {LAYER_OF_GPUS}, f16 3 6 32 2, i32 4 16, i32 6 32, f16 16 30"
    deep = operands(spec("butterfly_deep_layer", given, "f32 5 16", kept=30, **TURNED))
    x = np.random.default_rng(0).standard_normal((7, 32))
    turned = turn_layers(x, deep[7][1].astype(float), deep[9])
    np.testing.assert_allclose(*(np.linalg.norm(a, axis=-1) for a in (turned, x)), rtol=1e-3)
    assert np.abs(turned - x).max() > 1
    assert deep[6].max() < 3


@pytest.mark.parametrize(("dtype", "allowed"), [("f32", 1e-5), ("f16", 2e-3), ("bf16", 1.6e-2)])
def test_what_halves_may_differ_by(dtype: str, allowed: float) -> None:
    """Rows that are rounded to them may be off by as much as they round."""
    asked = spec("butterfly_layer", "f32 1 4", "f32 1 4", dtype=dtype, activation_bits=0)
    wanted = np.ones((1, 4))
    assert error_of([wanted * (1 + 0.9 * allowed)], [wanted], asked) == ""
    assert f"of {allowed:g} allowed" in error_of([wanted * (1 + 1.1 * allowed)], [wanted], asked)


def test_an_op_that_nothing_is_known_of() -> None:
    """Its operands are drawn by their types."""
    asked = Spec("of_mine", (), tuple(map(tensor, ("f32 9", "i8 999", "i32 9", "bool 9"))), ())
    floats, codes, integers, truths = operands(asked)
    assert floats.dtype == np.float32
    assert (codes.min(), codes.max()) == (-127, 127)
    assert np.abs(integers).max() <= 1000
    assert set(np.unique(truths)) == {False, True}


def test_codes_are_those_of_the_floats_as_they_are() -> None:
    """Where a result is of integers, floats are not made wider before they are rounded."""
    asked = SPECS["quantize_rows"]
    codes, scales = meaning(asked, operands(asked))
    assert (codes.dtype, scales.dtype) == (np.int8, np.float32)
    assert meaning(SPECS["linear"], operands(SPECS["linear"]))[0].dtype == np.float64


FLOAT, INTEGER = SPECS["log"], SPECS["requantize"]
ONES = np.ones((2, 3))


@pytest.mark.parametrize(
    ("asked", "found", "wanted", "said"),
    [
        (FLOAT, [], [ONES], "0 results, 1 are wanted"),
        (FLOAT, [ONES[:1]], [ONES], "result 0 has the shape [1, 3], not [2, 3]"),
        (FLOAT, [ONES * 1.01], [ONES], "result 0 is off by 0.01 of its norm, of 1e-05 allowed"),
        (FLOAT, [ONES * 1e-4], [ONES * 0], "result 0 is off by 0.00024 of its norm, of 1e-05"),
        (FLOAT, [ONES / [1, 1, np.inf] * np.nan], [ONES], "result 0 is infinite or no number in 6"),
        (FLOAT, [ONES * np.inf], [ONES * np.inf], "result 0 is infinite or no number in 6 of 6"),
        (FLOAT, [ONES * (1 + 1e-6)], [ONES], ""),
        (SPECS["butterfly_experts of codes"], [ONES * 1.001], [ONES], ""),
        (SPECS["butterfly_experts of codes"], [ONES * 1.003], [ONES], "of 0.002 allowed"),
        (INTEGER, [np.array([1, -127, 3], np.int8)], [np.array([1, 127, 3], np.int8)],
         "result 0 is wrong in 1 of 3 numbers, by 254 at most"),
        (INTEGER, [np.array([1, 2], np.int8)], [np.array([1, 2], np.int8)], ""),
    ],
)  # fmt: skip
def test_what_is_said_of_an_error(
    asked: Spec, found: list[np.ndarray], wanted: list[np.ndarray], said: str
) -> None:
    """By how much results are off, of what is allowed; nothing of what is right."""
    text = error_of(found, wanted, asked)
    assert said in text
    assert bool(text) is bool(said)
