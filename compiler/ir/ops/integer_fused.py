"""Integer products with what follows them: sums of 32 bits become codes before they are stored.

Each is what the ops of `integer.py` that its meaning names give, one after another.
"""

from __future__ import annotations

import numpy as np

from ..types import Type
from .butterfly import ternary_dot, ternary_dot_meaning
from .integer import (
    integer_combine,
    integer_combine_meaning,
    integer_linear,
    integer_linear_meaning,
    lookup,
    lookup_meaning,
    requantize,
    requantize_meaning,
    saturating_add,
    saturating_add_meaning,
)
from .table import REQUIRED, op, want

Array = np.ndarray


def quantized_linear(
    x: Type,
    w: Type,
    bias: Type,
    multiplier: Type,
    residual: Type | None = None,
    *,
    drop: int,
    shift: int,
    dtype: str,
    planes: int,
) -> Type:
    codes = requantize(integer_linear(x, w, bias, planes), multiplier, drop, shift, dtype)
    if residual is None:
        return codes
    want(residual.shape == codes.shape, f"residual {residual} for {codes}")
    return saturating_add(residual, codes)


def quantized_linear_meaning(
    x: Array,
    w: Array,
    bias: Array,
    multiplier: Array,
    residual: Array | None = None,
    *,
    drop: int,
    shift: int,
    dtype: str,
    planes: int,
) -> Array:
    sums = integer_linear_meaning(x, w, bias, planes)
    codes = requantize_meaning(sums, multiplier, drop, shift, dtype)
    return codes if residual is None else saturating_add_meaning(residual, codes)


def quantized_ternary(
    codes: Type, w: Type, multiplier: Type, table: Type | None = None, *, drop: int, shift: int
) -> Type:
    made = requantize(ternary_dot(codes, w), multiplier, drop, shift, "i8")
    return made if table is None else lookup(made, table)


def quantized_ternary_meaning(
    codes: Array, w: Array, multiplier: Array, table: Array | None = None, *, drop: int, shift: int
) -> Array:
    made = requantize_meaning(ternary_dot_meaning(codes, w), multiplier, drop, shift, "i8")
    return made if table is None else lookup_meaning(made, table)


def quantized_combine(
    values: Type, gates: Type, multiplier: Type, *, drop: int, shift: int, dtype: str
) -> Type:
    return requantize(integer_combine(values, gates), multiplier, drop, shift, dtype)


def quantized_combine_meaning(
    values: Array, gates: Array, multiplier: Array, *, drop: int, shift: int, dtype: str
) -> Array:
    sums = integer_combine_meaning(values, gates)
    return requantize_meaning(sums, multiplier, drop, shift, dtype)


OPS = [
    op(
        "quantized_linear",
        "x w bias multiplier residual?",
        quantized_linear,
        quantized_linear_meaning,
        "requantize(integer_linear(x, w, bias), multiplier), added to the residual by "
        "saturating_add if there is one",
        drop=0,
        shift=REQUIRED,
        dtype="i8",
        planes=0,
    ),
    op(
        "quantized_ternary",
        "codes w multiplier table?",
        quantized_ternary,
        quantized_ternary_meaning,
        "requantize(ternary_dot(codes, w), multiplier) in 8 bits, looked up in the table if "
        "there is one",
        drop=0,
        shift=REQUIRED,
    ),
    op(
        "quantized_combine",
        "values gates multiplier",
        quantized_combine,
        quantized_combine_meaning,
        "requantize(integer_combine(values, gates), multiplier)",
        drop=0,
        shift=REQUIRED,
        dtype="i8",
    ),
]
