"""Ops that act on each element: operands broadcast as in NumPy and share one dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ....kernels.gelu_numbers import GELU_POLY_LIMIT, GELU_POLY_SQUARINGS, GELU_POLY_TAIL
from ..types import FLOATS, STORAGE, Type
from .table import REQUIRED, broadcast_shapes, op, want

Array = np.ndarray


def erf(x: Array) -> Array:
    """The error function, correct to double precision, in the dtype of ``x``."""
    return np.asarray(_erf(np.asarray(x, np.float64)), dtype=np.float64).astype(x.dtype)


_erf = np.frompyfunc(math.erf, 1, 1)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(x.dtype)


def gelu(x: Array) -> Array:
    """x * Phi(x), Phi the normal distribution function (the erf form)."""
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of GELU (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def gelu_poly(x: Array) -> Array:
    """GELU but for 3e-5: max(x, 0) - t * (1 - Phi(t)), t = |x|, with a power of a polynomial.

    What leaves 8-bit products is off by a hundred times as much.
    """
    t = np.minimum(np.abs(x), x.dtype.type(GELU_POLY_LIMIT))
    root = np.polynomial.polynomial.polyval(t, np.asarray(GELU_POLY_TAIL, x.dtype))
    return np.maximum(x, 0) - t * root ** (2**GELU_POLY_SQUARINGS)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "gelu_poly": gelu_poly,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * sigmoid(x),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
}


def same(*types: Type, **_: Any) -> Type:
    dtypes = {t.dtype for t in types}
    want(len(dtypes) == 1, f"operands of different dtypes: {', '.join(map(str, types))}")
    return Type(types[0].dtype, broadcast_shapes(*(t.shape for t in types)))


def floating(*types: Type, **_: Any) -> Type:
    result = same(*types)
    want(result.dtype in FLOATS, f"needs a float, got {types[0]}")
    return result


def comparison(a: Type, b: Type) -> Type:
    return same(a, b).with_dtype("bool")


def logical(*types: Type) -> Type:
    want(all(t.dtype == "bool" for t in types), f"needs bool, got {', '.join(map(str, types))}")
    return same(*types)


def selection(condition: Type, a: Type, b: Type) -> Type:
    want(condition.dtype == "bool", f"the condition is {condition}, not bool")
    return Type(same(a, b).dtype, broadcast_shapes(condition.shape, a.shape, b.shape))


def divide(a: Array, b: Array) -> Array:
    if np.issubdtype(a.dtype, np.floating):
        return a / b
    divisor = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // divisor
    cut = (quotient < 0) & (quotient * divisor != a)  # // goes down, not towards zero
    return np.where(b == 0, a.dtype.type(0), (quotient + cut).astype(a.dtype))


def sign(x: Array) -> Array:
    return (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype)


def cast(x: Array, dtype: str) -> Array:
    if dtype == "bf16":  # round to nearest even on the upper half of a float32
        bits = np.asarray(x, np.float32).view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        # A NaN of ones would be carried over to a zero.
        return np.where(
            np.isnan(x), np.float32(np.nan), (rounded & np.uint32(0xFFFF0000)).view(np.float32)
        )
    return x.astype(STORAGE[dtype])


def cast_type(x: Type, dtype: str) -> Type:
    return Type(dtype, x.shape)


OPS = [
    op("add", "a b", same, lambda a, b: a + b, "a + b"),
    op("sub", "a b", same, lambda a, b: a - b, "a - b"),
    op("mul", "a b", same, lambda a, b: a * b, "a * b"),
    op("div", "a b", same, divide, "a / b; integers truncate towards zero, by zero give zero"),
    op("pow", "a b", floating, lambda a, b: np.power(a, b), "a ** b"),
    op("maximum", "a b", same, np.maximum, "the larger; NaN if either is"),
    op("minimum", "a b", same, np.minimum, "the smaller; NaN if either is"),
    op("neg", "x", same, lambda x: -x, "-x"),
    op("abs", "x", same, np.abs, "|x|"),
    op("sign", "x", same, sign, "-1, 0 or 1; 0 of NaN"),
    op("round", "x", floating, np.rint, "to the nearest integer, ties to even"),
    op("floor", "x", floating, np.floor, "the largest integer <= x"),
    op("ceil", "x", floating, np.ceil, "the smallest integer >= x"),
    op("sqrt", "x", floating, np.sqrt, "square root"),
    op("rsqrt", "x", floating, lambda x: 1 / np.sqrt(x), "1 / sqrt(x)"),
    op("exp", "x", floating, np.exp, "e ** x"),
    op("log", "x", floating, np.log, "natural logarithm"),
    op("sin", "x", floating, np.sin, "sine"),
    op("cos", "x", floating, np.cos, "cosine"),
    op("atan2", "y x", floating, np.arctan2, "angle of the point (x, y), -pi to pi"),
    op("tanh", "x", floating, np.tanh, "hyperbolic tangent"),
    op("erf", "x", floating, erf, "error function"),
    op("sigmoid", "x", floating, sigmoid, "1 / (1 + exp(-x))"),
    op("silu", "x", floating, ACTIVATIONS["silu"], "x * sigmoid(x)"),
    op("relu", "x", same, ACTIVATIONS["relu"], "max(x, 0)"),
    op("gelu", "x", floating, gelu, "x * Phi(x), erf form"),
    op("gelu_tanh", "x", floating, gelu_tanh, "x * Phi(x), tanh form"),
    op("gelu_poly", "x", floating, gelu_poly, "x * Phi(x) by a polynomial, 3e-5 off at most"),
    op(
        "clip",
        "x",
        same,
        lambda x, low, high: np.clip(x, x.dtype.type(low), x.dtype.type(high)),
        "x limited to [low, high]",
        low=REQUIRED,
        high=REQUIRED,
    ),
    op("equal", "a b", comparison, lambda a, b: a == b, "a == b"),
    op("not_equal", "a b", comparison, lambda a, b: a != b, "a != b"),
    op("less", "a b", comparison, lambda a, b: a < b, "a < b"),
    op("less_equal", "a b", comparison, lambda a, b: a <= b, "a <= b"),
    op("greater", "a b", comparison, lambda a, b: a > b, "a > b"),
    op("greater_equal", "a b", comparison, lambda a, b: a >= b, "a >= b"),
    op("logical_and", "a b", logical, np.logical_and, "both"),
    op("logical_or", "a b", logical, np.logical_or, "either"),
    op("logical_not", "x", logical, np.logical_not, "not x"),
    op("where", "condition a b", selection, np.where, "a where the condition holds, else b"),
    op("cast", "x", cast_type, cast, "x as another dtype", dtype=REQUIRED),
]
