"""Ops that act on each element, on torch tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.gelu_numbers import GELU_POLY_LIMIT, GELU_POLY_SQUARINGS, GELU_POLY_TAIL
from .torch_types import TORCH, held


def divide(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return a / b
    # Processors trap on x / 0, and on the smallest integer / -1.
    zero = b == 0
    negated = b == -1 if b.dtype.is_signed else torch.zeros_like(zero)
    quotient = torch.div(a, b.masked_fill(zero | negated, 1), rounding_mode="trunc")
    return torch.where(negated, -a, quotient).masked_fill(zero, 0)


def sign(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def gelu_poly(x: Tensor) -> Tensor:
    x = held(x)
    t = x.abs().clamp(max=GELU_POLY_LIMIT)
    root = torch.full_like(t, GELU_POLY_TAIL[-1])
    for coefficient in GELU_POLY_TAIL[-2::-1]:
        root = root * t + coefficient
    return torch.relu(x) - t * root ** (2**GELU_POLY_SQUARINGS)


def clip(x: Tensor, low: float, high: float) -> Tensor:
    if x.is_floating_point():
        return x.clamp(low, high)
    return x.clamp(int(low), int(high))


def cast(x: Tensor, dtype: str) -> Tensor:
    return x.to(TORCH[dtype])


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": functional.gelu,
    "gelu_tanh": gelu_tanh,
    "gelu_poly": gelu_poly,
    "relu": torch.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}

TABLE: dict[str, Callable[..., Any]] = {
    **{name: function for name, function in ACTIVATIONS.items() if name != "none"},
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": divide,
    "pow": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": sign,
    "round": torch.round,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "exp": torch.exp,
    "log": torch.log,
    "sin": torch.sin,
    "cos": torch.cos,
    "atan2": torch.atan2,
    "erf": torch.erf,
    "clip": clip,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "less": torch.lt,
    "less_equal": torch.le,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_not": torch.logical_not,
    "where": torch.where,
    "cast": cast,
}
