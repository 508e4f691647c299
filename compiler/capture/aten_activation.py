"""ATen's activation functions, and the elementary functions made of others."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ..ir.graph import Node
from ..ir.types import FLOATS
from .aten_elementwise import arithmetic, compare, where
from .site import Site, lowers


@lowers("aten.gelu")
def gelu(site: Site, x: Node, approximate: str = "none") -> Node:
    return site.make("gelu_tanh" if approximate == "tanh" else "gelu", x)


def times(site: Site, x: Node, factor: float) -> Node:
    return x if factor == 1 else arithmetic(site, "mul", x, factor)


def _exp_minus_one(site: Site, x: Node) -> Node:
    return arithmetic(site, "sub", site.make("exp", x), 1)


@lowers("aten.leaky_relu")
def leaky_relu(site: Site, x: Node, slope: float = 0.01) -> Node:
    return where(site, compare(site, "greater", x, 0), x, times(site, x, slope))


@lowers("aten.prelu", "aten._prelu_kernel")
def prelu(site: Site, x: Node, slope: Node) -> Node:
    if slope.type.size > 1 and slope.type.rank == 1:
        slope = site.reshape(slope, (slope.type.size, *(1,) * (x.type.rank - 2)))
    return where(site, compare(site, "greater", x, 0), x, site.make("mul", x, slope))


@lowers("aten.elu")
def elu(site: Site, x: Node, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Node:
    curve = times(site, _exp_minus_one(site, times(site, x, input_scale)), alpha)
    return times(site, where(site, compare(site, "greater", x, 0), x, curve), scale)


@lowers("aten.celu")
def celu(site: Site, x: Node, alpha: float = 1) -> Node:
    return elu(site, x, alpha, 1, 1 / alpha)


@lowers("aten.selu")
def selu(site: Site, x: Node) -> Node:
    return elu(site, x, 1.6732632423543772, 1.0507009873554805)


@lowers("aten.softplus")
def softplus(site: Site, x: Node, beta: float = 1, threshold: float = 20) -> Node:
    scaled = times(site, x, beta)
    curve = site.make("log", arithmetic(site, "add", site.make("exp", scaled), 1))
    is_linear = compare(site, "greater", scaled, threshold)
    return where(site, is_linear, x, times(site, curve, 1 / beta))


@lowers("aten.mish")
def mish(site: Site, x: Node) -> Node:
    return site.make("mul", x, site.make("tanh", softplus(site, x)))


@lowers("aten.log_sigmoid")
def log_sigmoid(site: Site, x: Node) -> Node:
    tail = site.make("exp", site.make("neg", site.make("abs", x)))
    tail = site.make("log", arithmetic(site, "add", tail, 1))
    return site.make("sub", arithmetic(site, "minimum", x, 0), tail)


@lowers("aten.hardsigmoid")
def hardsigmoid(site: Site, x: Node) -> Node:
    shifted = site.make("clip", arithmetic(site, "add", x, 3), low=0, high=6)
    return arithmetic(site, "div", shifted, 6)


@lowers("aten.hardswish")
def hardswish(site: Site, x: Node) -> Node:
    return site.make("mul", x, hardsigmoid(site, x))


@lowers("aten.softsign")
def softsign(site: Site, x: Node) -> Node:
    return site.make("div", x, arithmetic(site, "add", site.make("abs", x), 1))


@lowers("aten.glu")
def glu(site: Site, x: Node, axis: int = -1) -> Node:
    axis %= x.type.rank
    half = x.type.shape[axis] // 2
    a, gate = (site.slice(x, axis, start, start + half) for start in (0, half))
    return site.make("mul", a, site.make("sigmoid", gate))


@lowers("aten.threshold")
def threshold(site: Site, x: Node, limit: float, value: float) -> Node:
    return where(site, compare(site, "greater", x, limit), x, value)


@lowers("aten.tan")
def tan(site: Site, x: Node) -> Node:
    return site.make("div", site.make("sin", x), site.make("cos", x))


@lowers("aten.atan")
def atan(site: Site, x: Node) -> Node:
    return arithmetic(site, "atan2", x, 1)


def _leg(site: Site, x: Node) -> Node:
    """sqrt(1 - x**2), exact at both ends."""
    rest = arithmetic(site, "mul", arithmetic(site, "sub", 1, x), arithmetic(site, "add", x, 1))
    return site.make("sqrt", rest)


@lowers("aten.asin")
def asin(site: Site, x: Node) -> Node:
    return arithmetic(site, "atan2", x, _leg(site, x))


@lowers("aten.acos")
def acos(site: Site, x: Node) -> Node:
    return arithmetic(site, "atan2", _leg(site, x), x)


@lowers("aten.asinh")
def asinh(site: Site, x: Node) -> Node:
    x = site.cast(x, site.out.dtype)
    size = site.make("abs", x)
    root = site.make("sqrt", arithmetic(site, "add", site.make("mul", x, x), 1))
    return site.make("mul", site.make("sign", x), site.make("log", site.make("add", size, root)))


@lowers("aten.acosh")
def acosh(site: Site, x: Node) -> Node:
    x = site.cast(x, site.out.dtype)
    rest = arithmetic(site, "mul", arithmetic(site, "sub", x, 1), arithmetic(site, "add", x, 1))
    return site.make("log", site.make("add", x, site.make("sqrt", rest)))


@lowers("aten.atanh")
def atanh(site: Site, x: Node) -> Node:
    x = site.cast(x, site.out.dtype)
    ratio = arithmetic(site, "div", arithmetic(site, "add", x, 1), arithmetic(site, "sub", 1, x))
    return times(site, site.make("log", ratio), 0.5)


@lowers("aten.erfc", "aten.special_erfc")
def erfc(site: Site, x: Node) -> Node:
    return arithmetic(site, "sub", 1, site.make("erf", site.cast(x, site.out.dtype)))


@lowers("aten.hypot")
def hypot(site: Site, a: Node, b: Node) -> Node:
    squares = (arithmetic(site, "mul", x, x) for x in (a, b))
    return site.make("sqrt", site.make("add", *squares))


@lowers("aten.signbit")
def signbit(site: Site, x: Node) -> Node:
    """Whether ``x`` is negative, minus zero too."""
    below = compare(site, "less", x, 0)
    if x.type.dtype not in FLOATS:
        return below
    inverse = arithmetic(replace(site, out=x.type), "div", 1, x)
    return site.make("logical_or", below, compare(site, "less", inverse, 0))


@lowers("aten.copysign")
def copysign(site: Site, a: Any, b: Any) -> Node:
    a, b = site.tensor(a, site.out.dtype), site.tensor(b, site.out.dtype)
    size = site.make("abs", a)
    return site.make("where", signbit(site, b), site.make("neg", size), size)


@lowers("aten.ldexp")
def ldexp(site: Site, x: Any, exponent: Any) -> Node:
    return arithmetic(site, "mul", x, arithmetic(site, "pow", 2, exponent))


@lowers("aten.exp2")
def exp2(site: Site, x: Node) -> Node:
    return site.make("exp", times(site, x, math.log(2)))


@lowers("aten.expm1")
def expm1(site: Site, x: Node) -> Node:
    return _exp_minus_one(site, x)


@lowers("aten.log1p")
def log1p(site: Site, x: Node) -> Node:
    return site.make("log", arithmetic(site, "add", x, 1))


@lowers("aten.log2")
def log2(site: Site, x: Node) -> Node:
    return times(site, site.make("log", x), 1 / math.log(2))


@lowers("aten.log10")
def log10(site: Site, x: Node) -> Node:
    return times(site, site.make("log", x), 1 / math.log(10))


@lowers("aten.sinh")
def sinh(site: Site, x: Node) -> Node:
    return _half_exponentials(site, "sub", x)


@lowers("aten.cosh")
def cosh(site: Site, x: Node) -> Node:
    return _half_exponentials(site, "add", x)


def _half_exponentials(site: Site, op: str, x: Node) -> Node:
    growing, falling = site.make("exp", x), site.make("exp", site.make("neg", x))
    return times(site, site.make(op, growing, falling), 0.5)


@lowers("aten.nan_to_num")
def nan_to_num(
    site: Site, x: Node, nan: float | None = None, high: Any = None, low: Any = None
) -> Node:
    largest = float(2 - 2**-23) * 2.0**127
    x = where(site, site.make("not_equal", x, x), nan or 0.0, x)
    x = where(site, compare(site, "equal", x, math.inf), largest if high is None else high, x)
    return where(site, compare(site, "equal", x, -math.inf), -largest if low is None else low, x)
