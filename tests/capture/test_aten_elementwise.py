"""Elementwise calls, activations and type promotion mean in the graph what they mean in PyTorch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from .agreement import Function, agree, agree_in_double, data, numbers

UNARY: list[Callable[..., Any]] = [
    torch.abs, torch.ceil, torch.cos, torch.erf, torch.exp, torch.exp2, torch.expm1, torch.floor,
    torch.neg, torch.relu, torch.round, torch.sigmoid, torch.sign, torch.sin, torch.tan, torch.tanh,
    torch.square, torch.reciprocal, torch.trunc, torch.frac, torch.sinh, torch.cosh, torch.isnan,
    torch.isinf, torch.isfinite, torch.logical_not, torch.nan_to_num, torch.positive,
    F.gelu, F.silu, F.elu, F.selu, F.celu, F.leaky_relu, F.softplus, F.mish, F.hardtanh, F.relu6,
    torch.atan, torch.asinh, torch.erfc, torch.sinc, torch.signbit,
    F.hardsigmoid, F.hardswish, F.softsign, F.logsigmoid, F.glu,
]  # fmt: skip
POSITIVE = [torch.sqrt, torch.rsqrt, torch.log, torch.log2, torch.log10, torch.log1p]
CASES: dict[str, Callable[..., Any]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "clamp_both": lambda x: x.clamp(-0.5, 0.5),
    "clamp_low": lambda x: x.clamp(min=0.25),
    "clamp_high": lambda x: x.clamp_max(0.25),
    "clamp_by_tensor": lambda x: x.clamp(x.mean(), x.amax()),
    "pow_2": lambda x: x**2,
    "pow_3": lambda x: x**3,
    "pow_minus_1": lambda x: x**-1,
    "pow_minus_2": lambda x: x**-2,
    "pow_half": lambda x: x.abs() ** 0.5,
    "pow_minus_half": lambda x: x.abs() ** -0.5,
    "pow_odd": lambda x: x.abs() ** 1.7,
    "pow_tensor": lambda x: x.abs() ** x,
    "pow_of_scalar": lambda x: 2.0**x,
    "rsub": lambda x: 1 - x,
    "add_alpha": lambda x: torch.add(x, x.cos(), alpha=0.5),
    "sub_alpha": lambda x: torch.sub(x, x.cos(), alpha=3),
    "floor_divide": lambda x: x // 0.3,
    "trunc_divide": lambda x: torch.div(x, 0.3, rounding_mode="trunc"),
    "remainder": lambda x: x % 0.3,
    "fmod": lambda x: torch.fmod(x, 0.3),
    "where": lambda x: torch.where(x > 0, x, -2.5),
    "masked_fill": lambda x: x.masked_fill(x < 0, float("-inf")),
    "chained": lambda x: (x > 0) & ~(x > 1) | (x < -1) ^ (x == x),
    "logical": lambda x: torch.logical_and(x, x > 0).logical_or(x < -1).logical_xor(x > 0.5),
    "bool_sum": lambda x: (x > 0) + (x > 1),
    "bool_product": lambda x: (x > 0) * (x < 1),
    "lerp": lambda x: torch.lerp(x, x.cos(), 0.25),
    "addcmul": lambda x: torch.addcmul(x, x.cos(), x.sin(), value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.abs() + 1, value=0.5),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.2])),
    "threshold": lambda x: F.threshold(x, 0.1, -3.0),
    "maximum": lambda x: torch.maximum(x, x.cos()).minimum(x.sin() + 1),
    "max_other": lambda x: torch.max(x, x.cos()),
    "to_half_way": lambda x: (x * 3).to(torch.int32),
    "to_bool": lambda x: x.round().bool(),
    "type_as": lambda x: (x > 0).type_as(x),
    "float_of_int": lambda x: x.long().float(),
    "in_place": lambda x: x.clone().mul_(2).add_(1).relu_(),
    "atan2": lambda x: torch.atan2(x, x.cos()),
    "arcs": lambda x: (x.tanh().asin(), x.tanh().acos(), (1 + x.abs()).acosh(), x.tanh().atanh()),
    "hypot": lambda x: torch.hypot(x, x.cos()),
    "copysign": lambda x: torch.copysign(x, x.cos().neg()),
    "sign_of_zero": lambda x: torch.signbit(x * 0),
    "ldexp": lambda x: torch.ldexp(x, torch.tensor(3)),
    "round_to_tens": lambda x: ((x * 100).round(decimals=-1), x.round(decimals=1)),
    "add_to_slice": lambda x: _add_to_slice(x),
}  # fmt: skip


def _add_to_slice(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1:3] += 1.0
    y[..., 0] = 2.0
    y[:, ::2] *= 3.0
    return y


def _name(function: Callable[..., Any]) -> str:
    return function.__name__


@pytest.mark.parametrize("function", UNARY, ids=_name)
def test_unary(function: Callable[..., Tensor]) -> None:
    """A function of one float tensor."""
    agree(Function(function), data(3, 4))


@pytest.mark.parametrize("function", POSITIVE, ids=_name)
def test_positive(function: Callable[..., Tensor]) -> None:
    """A function of positive numbers."""
    agree(Function(function), data(3, 4).abs())


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    """An expression of one float tensor."""
    agree(Function(CASES[name]), data(3, 4))


@pytest.mark.parametrize(
    "name",
    ["pow_2", "pow_half", "add_alpha", "clamp_both", "where", "gelu_tanh", "in_place", "rsub"],
)
def test_in_double(name: str) -> None:
    """Computed in double precision, graph and PyTorch agree to round-off."""
    agree_in_double(Function(CASES[name]), data(3, 4))


def test_integers() -> None:
    """Integer arithmetic is exact, with Python's and C's ways of dividing negative numbers."""

    def function(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return (
            a + b, a - 2, a * b, a // b, a % b, torch.div(a, b, rounding_mode="trunc"), a.abs(),
            torch.fmod(a, b), a**2, -a, a.sign(), a.clamp(-2, 3), a == b, a < 0, a.round(),
            a.float() / b, a / b, a.sin(), a.maximum(b), 7 // b, a.square(), a.relu(),
        )  # fmt: skip

    b = numbers(40, below=5, seed=1) + 1
    agree(Function(function), numbers(40, below=21) - 10, b * (1 - 2 * (numbers(40) % 2)))


DTYPES = [torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32]
OPERATORS = {
    "add": operator.add, "mul": operator.mul, "truediv": operator.truediv, "gt": operator.gt,
    "eq": operator.eq, "where": lambda a, b: torch.where(torch.tensor([True, False]), a, b),
    "maximum": lambda a, b: torch.maximum(*(torch.as_tensor(y) for y in (a, b))),
}  # fmt: skip
SCALARS: list[Any] = [True, 2, -1, 0.5]


@st.composite
def operand_pairs(draw: st.DrawFn) -> tuple[str, list[Any]]:
    """An operator and two operands of any dtype, rank 0 or 1, or one a Python scalar."""

    def tensor() -> Tensor:
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.sampled_from([(), (1,), (2,)]))
        return (numbers(*shape, below=3, seed=draw(st.integers(0, 5))) + 1).to(dtype)

    name = draw(st.sampled_from(sorted(OPERATORS)))
    other = tensor() if name == "maximum" else draw(st.one_of(st.sampled_from(SCALARS), st.none()))
    pair: list[Any] = [tensor(), tensor() if other is None else other]
    return name, pair[:: draw(st.sampled_from([1, -1]))]


@given(operand_pairs())
@settings(max_examples=60)
def test_promotion(case: tuple[str, list[Any]]) -> None:
    """Mixed dtypes, ranks and Python scalars give the dtype and the numbers that PyTorch gives."""
    name, pair = case
    places = [i for i, x in enumerate(pair) if isinstance(x, Tensor)]

    def function(*tensors: Tensor) -> Tensor:
        operands = list(pair)
        for place, tensor in zip(places, tensors, strict=True):
            operands[place] = tensor
        return OPERATORS[name](*operands)

    agree(Function(function), *(pair[place] for place in places))


def test_modules_of_activations() -> None:
    """Activation modules, parameters included, nest in Sequential."""
    model = nn.Sequential(nn.PReLU(4), nn.Dropout(0.5), nn.GELU(), nn.Identity(), nn.SiLU())
    agree(model, data(2, 4, 3))


def test_float64_inside_a_model() -> None:
    """What a model computes in float64 between its inputs and results is computed in float32."""
    table = data(9, 4, seed=1).double()

    def wide(x: Tensor, i: Tensor) -> Tensor:
        angles = table[i] + x.double().mean()
        largest = torch.finfo(torch.float64).max
        scores = torch.where(x > 0, x.double(), -largest).softmax(-1)
        return (angles.cos() * scores).to(x.dtype)

    graph = agree(Function(wide), data(5, 4), numbers(5, below=9)).graph
    assert {node.type.dtype for node in graph.nodes} <= {"f32", "i32", "i64", "bool"}
