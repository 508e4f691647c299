"""ATen calls that act on each element."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..ir.graph import Node
from ..ir.types import FLOATS
from .site import Site, accept, lowers, promoted

UNARY = {
    "aten.abs": "abs",
    "aten.ceil": "ceil",
    "aten.cos": "cos",
    "aten.erf": "erf",
    "aten.exp": "exp",
    "aten.floor": "floor",
    "aten.log": "log",
    "aten.neg": "neg",
    "aten.relu": "relu",
    "aten.round.default": "round",
    "aten.rsqrt": "rsqrt",
    "aten.sgn": "sign",
    "aten.sigmoid": "sigmoid",
    "aten.sign": "sign",
    "aten.silu": "silu",
    "aten.sin": "sin",
    "aten.special_erf": "erf",
    "aten.special_expit": "sigmoid",
    "aten.sqrt": "sqrt",
    "aten.tanh": "tanh",
}
BINARY = {
    "aten.atan2": "atan2",
    "aten.div.Scalar": "div",
    "aten.div.Tensor": "div",
    "aten.divide.Tensor": "div",
    "aten.maximum": "maximum",
    "aten.minimum": "minimum",
    "aten.mul": "mul",
    "aten.multiply": "mul",
    "aten.true_divide": "div",
}
COMPARISONS = {
    "aten.eq": "equal",
    "aten.ge": "greater_equal",
    "aten.gt": "greater",
    "aten.le": "less_equal",
    "aten.lt": "less",
    "aten.ne": "not_equal",
}
_WHOLE = frozenset({"round", "floor", "ceil"})


def _enter_tables() -> None:
    def unary(op: str) -> Any:
        return lambda site, x: _unary(site, op, x)

    def binary(op: str) -> Any:
        return lambda site, a, b: arithmetic(site, op, a, b)

    def comparison(op: str) -> Any:
        return lambda site, a, b: compare(site, op, a, b)

    for table, lowering in ((UNARY, unary), (BINARY, binary), (COMPARISONS, comparison)):
        for name, op in table.items():
            lowers(name)(lowering(op))


def _unary(site: Site, op: str, x: Node) -> Node:
    if op in _WHOLE and site.out.dtype not in FLOATS:
        return x
    return site.make(op, site.cast(x, site.out.dtype))


def arithmetic(site: Site, op: str, a: Any, b: Any) -> Node:
    """``a op b`` in the dtype of the call's result, which is the one that torch computes in."""
    if op == "mul" and site.out.dtype == "bool":
        op = "logical_and"
    return site.make(op, site.tensor(a, site.out.dtype), site.tensor(b, site.out.dtype))


def compare(site: Site, op: str, a: Any, b: Any) -> Node:
    dtype = promoted(a, b)
    return site.make(op, site.tensor(a, dtype), site.tensor(b, dtype))


_enter_tables()


@lowers("aten.add", "aten.sub", "aten.subtract")
def add(site: Site, a: Any, b: Any, alpha: float = 1) -> Node:
    return _scaled_sum(site, "add" if site.operator == "add" else "sub", a, b, alpha)


def _scaled_sum(site: Site, op: str, a: Any, b: Any, alpha: float) -> Node:
    dtype = site.out.dtype
    a, b = site.tensor(a, dtype), site.tensor(b, dtype)
    if alpha != 1:
        b = site.make("mul", b, site.constant(alpha, dtype))
    if dtype == "bool":
        return site.make("logical_or", a, b)
    return site.make(op, a, b)


@lowers("aten.rsub")
def rsub(site: Site, a: Any, b: Any, alpha: float = 1) -> Node:
    return _scaled_sum(site, "sub", b, a, alpha)


@lowers("aten.div.Tensor_mode", "aten.div.Scalar_mode", "aten.floor_divide")
def divide(site: Site, a: Any, b: Any, rounding_mode: str | None = "floor") -> Node:
    dtype = site.out.dtype
    a, b = site.tensor(a, dtype), site.tensor(b, dtype)
    quotient = site.make("div", a, b)
    if rounding_mode is None:
        return quotient
    if rounding_mode == "trunc":
        return truncate(site, quotient)
    if dtype in FLOATS:
        return site.make("floor", quotient)
    # The quotient was cut towards zero: one too many where the signs differ and a rest is left.
    zero = site.constant(0, dtype)
    rest = site.make("sub", a, site.make("mul", quotient, b))
    rest_is_negative, b_is_negative = site.make("less", rest, zero), site.make("less", b, zero)
    differ = site.make("not_equal", rest_is_negative, b_is_negative)
    over = site.make("logical_and", differ, site.make("not_equal", rest, zero))
    return site.make("sub", quotient, site.cast(over, dtype))


@lowers("aten.remainder")
def remainder(site: Site, a: Any, b: Any) -> Node:
    quotient = site.make("mul", divide(site, a, b), site.tensor(b, site.out.dtype))
    return site.make("sub", site.tensor(a, site.out.dtype), quotient)


@lowers("aten.fmod")
def fmod(site: Site, a: Any, b: Any) -> Node:
    quotient = site.make("mul", divide(site, a, b, "trunc"), site.tensor(b, site.out.dtype))
    return site.make("sub", site.tensor(a, site.out.dtype), quotient)


@lowers("aten.trunc", "aten.fix")
def truncate(site: Site, x: Node) -> Node:
    if x.type.dtype not in FLOATS:
        return x
    return site.make("mul", site.make("sign", x), site.make("floor", site.make("abs", x)))


@lowers("aten.frac")
def fraction(site: Site, x: Node) -> Node:
    return site.make("sub", x, truncate(site, x))


@lowers("aten.pow", "aten.float_power")
def power(site: Site, a: Any, b: Any) -> Node:
    dtype = site.out.dtype
    if isinstance(b, Node) or not isinstance(a, Node):
        accept(dtype in FLOATS, f"an integer power in {dtype}", "raise floats, or multiply")
        return site.make("pow", site.tensor(a, dtype), site.tensor(b, dtype))
    x = site.cast(a, dtype)
    # torch computes these exponents exactly so.
    if b in (2, 3):
        squared = site.make("mul", x, x)
        return squared if b == 2 else site.make("mul", squared, x)
    if b in (0.5, -0.5):
        return site.make("sqrt" if b > 0 else "rsqrt", x)
    if b in (1, -1, -2) and dtype in FLOATS:
        divisor = site.make("mul", x, x) if b == -2 else x
        return x if b == 1 else site.make("div", site.constant(1, dtype), divisor)
    accept(dtype in FLOATS, f"power {b} of {dtype}", "raise floats, or write the products out")
    return site.make("pow", x, site.constant(b, dtype))


@lowers("aten.square")
def square(site: Site, x: Node) -> Node:
    return site.make("mul", x, x)


@lowers("aten.reciprocal")
def reciprocal(site: Site, x: Node) -> Node:
    return arithmetic(site, "div", 1, x)


@lowers("aten.clamp", "aten.clip")
def clamp(site: Site, x: Node, low: Any = None, high: Any = None) -> Node:
    dtype = site.out.dtype
    if not (low is None or high is None or isinstance(low, Node) or isinstance(high, Node)):
        return site.make("clip", site.cast(x, dtype), low=low, high=high)
    x = site.cast(x, dtype)
    x = x if low is None else site.make("maximum", x, site.tensor(low, dtype))
    return x if high is None else site.make("minimum", x, site.tensor(high, dtype))


@lowers("aten.hardtanh")
def hardtanh(site: Site, x: Node, low: float = -1, high: float = 1) -> Node:
    return clamp(site, x, low, high)


@lowers("aten.relu6")
def relu6(site: Site, x: Node) -> Node:
    return clamp(site, x, 0, 6)


@lowers("aten.clamp_min")
def clamp_min(site: Site, x: Node, low: Any) -> Node:
    return clamp(site, x, low, None)


@lowers("aten.clamp_max")
def clamp_max(site: Site, x: Node, high: Any) -> Node:
    return clamp(site, x, None, high)


@lowers("aten.where")
def where(site: Site, condition: Node, a: Any, b: Any) -> Node:
    dtype = site.out.dtype
    condition = truth(site, condition)
    return site.make("where", condition, site.tensor(a, dtype), site.tensor(b, dtype))


@lowers("aten.masked_fill")
def masked_fill(site: Site, x: Node, mask: Node, value: Any) -> Node:
    return where(site, mask, value, x)


def truth(site: Site, x: Node) -> Node:
    """``x`` as bool: whether it is not zero."""
    return site.cast(x, "bool")


@lowers("aten.logical_and")
def logical_and(site: Site, a: Node, b: Node) -> Node:
    return site.make("logical_and", truth(site, a), truth(site, b))


@lowers("aten.logical_or")
def logical_or(site: Site, a: Node, b: Node) -> Node:
    return site.make("logical_or", truth(site, a), truth(site, b))


@lowers("aten.logical_xor")
def logical_xor(site: Site, a: Node, b: Node) -> Node:
    return site.make("not_equal", truth(site, a), truth(site, b))


@lowers("aten.logical_not")
def logical_not(site: Site, x: Node) -> Node:
    return site.make("logical_not", truth(site, x))


@lowers(
    "aten.__and__",
    "aten.__or__",
    "aten.__xor__",
    "aten.bitwise_and",
    "aten.bitwise_not",
    "aten.bitwise_or",
    "aten.bitwise_xor",
)
def bitwise(site: Site, *operands: Any) -> Node:
    op = site.operator.removeprefix("bitwise_").strip("_")
    advice = "combine masks as bool; write integer bits as sums and products"
    known = site.out.dtype == "bool" or op == "and"
    accept(known, f"bits of {site.out.dtype}", advice)
    if site.out.dtype != "bool" and op == "and":
        return _low_bits(site, *operands)
    parts = [site.tensor(x, "bool") for x in operands]
    return site.make("not_equal" if op == "xor" else f"logical_{op}", *parts)


def _low_bits(site: Site, a: Any, b: Any) -> Node:
    """``a & (2**n - 1)``: what is left of ``a`` after whole multiples of 2**n."""
    a, b = (b, a) if not isinstance(a, Node) or site.value(a) is not None else (a, b)
    mask = site.value(b) if isinstance(b, Node) else np.asarray(b)
    low = mask is not None and bool(((mask >= 0) & (mask & (mask + 1) == 0)).all())
    what = f"bits of {site.out.dtype} by a mask that does not count up to a power of two"
    accept(low, what, "write integer bits as sums and products")
    return remainder(site, a, site.constant(np.asarray(mask) + 1, site.out.dtype))


@lowers(
    "aten.__lshift__",
    "aten.__rshift__",
    "aten.bitwise_left_shift",
    "aten.bitwise_right_shift",
)
def shift(site: Site, x: Any, count: Any) -> Node:
    """A shift by known counts: a product with a power of two, or a quotient rounded down."""
    counts = site.value(count) if isinstance(count, Node) else np.asarray(count)
    known = counts is not None and bool(((counts >= 0) & (counts < 63)).all())
    accept(known, "a shift by computed bits", "multiply, or divide with //, by a power of two")
    factor = site.constant(2 ** np.asarray(counts, np.int64), site.out.dtype)
    if "left" in site.operator or "lshift" in site.operator:
        return arithmetic(site, "mul", x, factor)
    return divide(site, x, factor)


@lowers("aten.isnan")
def isnan(site: Site, x: Node) -> Node:
    return site.make("not_equal", x, x)


@lowers("aten.isinf")
def isinf(site: Site, x: Node) -> Node:
    return compare(site, "equal", site.make("abs", x), math.inf)


@lowers("aten.isfinite")
def isfinite(site: Site, x: Node) -> Node:
    return compare(site, "less", site.make("abs", x), math.inf)


@lowers("aten.lerp")
def lerp(site: Site, a: Node, b: Node, weight: Any) -> Node:
    step = arithmetic(site, "mul", site.make("sub", b, a), weight)
    return site.make("add", a, step)


@lowers("aten.addcmul")
def addcmul(site: Site, x: Node, a: Node, b: Node, value: float = 1) -> Node:
    return _scaled_sum(site, "add", x, arithmetic(site, "mul", a, b), value)


@lowers("aten.addcdiv")
def addcdiv(site: Site, x: Node, a: Node, b: Node, value: float = 1) -> Node:
    return _scaled_sum(site, "add", x, arithmetic(site, "div", a, b), value)


@lowers("aten._to_copy", "aten.to", "aten.type_as")
def to(site: Site, x: Node, *_: Any, **__: Any) -> Node:
    return site.cast(x, site.out.dtype)


@lowers("aten.round.decimals")
def round_decimals(site: Site, x: Node, decimals: int = 0) -> Node:
    if x.type.dtype not in FLOATS:
        return x
    scale, rest = ("mul", "div") if decimals >= 0 else ("div", "mul")
    scaled = arithmetic(site, scale, x, 10.0 ** abs(decimals))
    return arithmetic(site, rest, site.make("round", scaled), 10.0 ** abs(decimals))
