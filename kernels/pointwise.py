"""Every op that acts on each element: one kernel, operands broadcast as in NumPy.

Broadcasting leaves each operand either contiguous or repeated along the innermost merged axis, so
that axis always runs in vectors; one that is shorter than a vector runs in scalars.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from . import pointwise_math, vector_math
from .elements import (
    COMPUTED,
    broadcast_strides,
    chunks,
    is_nan,
    merge,
    nest,
    number,
    offset,
    parameters,
    plain,
    read,
    row_major,
    widened,
    write,
)
from .lanes import Lanes
from .record import Kernel, Spec
from .tir import T, cast, function, let

# Floats of this magnitude have no fraction.
INTEGRAL = 2.0**23


@dataclass(frozen=True)
class Unit:
    """What an expression computes with: vectors of ``lanes.float_lanes`` elements of ``kind``."""

    lanes: Lanes
    kind: str

    @property
    def width(self) -> int:
        return self.lanes.float_lanes

    def number(self, value: float) -> Any:
        return number(self.kind, value, self.width)

    def name(self, value: Any) -> Any:
        return let(value, self.width, self.kind)

    def flag(self, condition: Any, inverted: bool = False) -> Any:
        """A condition as an int32 of 0 or 1."""
        one, zero = number("int32", 1, self.width), number("int32", 0, self.width)
        return T.Select(condition, zero, one) if inverted else T.Select(condition, one, zero)


# An expression is made of a unit and values that are names.
Expression = Callable[..., Any]


def by_lanes(function: Callable[..., Any]) -> Expression:
    """A function of lanes and floats as an expression."""
    return lambda u, *values: function(u.lanes, *values)


def larger(u: Unit, a: Any, b: Any) -> Any:
    return T.Select(a > b, a, b)


def smaller(u: Unit, a: Any, b: Any) -> Any:
    return T.Select(a < b, a, b)


def first_nan(choose: Expression) -> Expression:
    """A choice of two floats that is NaN if either is; it must choose b if b is NaN."""
    return lambda u, a, b: T.Select(is_nan(a, u.width), a, choose(u, a, b))


def sign(u: Unit, x: Any) -> Any:
    below = T.Select(x < u.number(0), u.number(-1), u.number(0))
    return T.Select(x > u.number(0), u.number(1), below)


def whole(u: Unit, x: Any, to_whole: Callable[[Any], Any], step: Callable[[Any, Any], Any]) -> Any:
    """``step(x, to_whole(x))`` where ``x`` may have a fraction, else ``x``."""
    fractional = u.lanes.absolute(x) < u.number(INTEGRAL)
    small = u.name(T.Select(fractional, x, u.number(0)))
    return T.Select(fractional, step(small, u.name(to_whole(small))), x)


def nearest(u: Unit, x: Any) -> Any:
    return whole(u, x, u.lanes.round, lambda _, rounded: rounded)


def _truncated(u: Unit, x: Any) -> Any:
    return u.lanes.as_float(cast("int32", x, u.width))


def floor(u: Unit, x: Any) -> Any:
    return whole(u, x, partial(_truncated, u), lambda x, t: T.Select(t > x, t - u.number(1), t))


def ceil(u: Unit, x: Any) -> Any:
    return whole(u, x, partial(_truncated, u), lambda x, t: T.Select(t < x, t + u.number(1), t))


def square_root(u: Unit, x: Any) -> Any:
    return u.lanes.square_root(x, u.width)


def divide(u: Unit, a: Any, b: Any) -> Any:
    """a / b towards zero; 0 where b is 0. By 0 and -1 it must not be divided: x86 may trap."""
    zero, one, minus = u.number(0), u.number(1), u.number(-1)
    safe = u.name(T.Select(b == zero, one, T.Select(b == minus, one, b)))
    quotient = T.Select(b == minus, zero - a, T.truncdiv(a, safe))
    return T.Select(b == zero, zero, quotient)


def limited(u: Unit, x: Any, low: float, high: float) -> Any:
    """``x`` in [low, high], NaN if ``x`` is; an infinite limit is none."""
    if low != -math.inf:
        x = u.name(T.Select(x < u.number(low), u.number(low), x))
    return T.Select(x > u.number(high), u.number(high), x) if high != math.inf else x


def choose(u: Unit, condition: Any, a: Any, b: Any) -> Any:
    return T.Select(condition > number("int32", 0, u.width), a, b)


# Not `!=`, and no negation of `<`: TVM means other things by them where a NaN is (elements.py).
COMPARISONS: dict[str, Expression] = {
    "equal": lambda u, a, b: u.flag(a == b),
    "not_equal": lambda u, a, b: u.flag(a == b, inverted=True),
    "less": lambda u, a, b: u.flag(a < b),
    "less_equal": lambda u, a, b: u.flag(a <= b),
    "greater": lambda u, a, b: u.flag(a > b),
    "greater_equal": lambda u, a, b: u.flag(a >= b),
}
ANY: dict[str, Expression] = {**COMPARISONS, "where": choose}
NUMBERS: dict[str, Expression] = {
    **ANY,
    "add": lambda u, a, b: a + b,
    "sub": lambda u, a, b: a - b,
    "mul": lambda u, a, b: a * b,
    "sign": sign,
    "relu": lambda u, x: T.Select(x < u.number(0), u.number(0), x),
    "clip": limited,
}
FLOATS: dict[str, Expression] = {
    **NUMBERS,
    "div": lambda u, a, b: a / b,
    "pow": by_lanes(vector_math.power),
    "maximum": first_nan(larger),
    "minimum": first_nan(smaller),
    "neg": lambda u, x: x * u.number(-1),  # 0 - x would lose the sign of zero
    "abs": lambda u, x: u.lanes.absolute(x),
    "round": nearest,
    "floor": floor,
    "ceil": ceil,
    "sqrt": square_root,
    "rsqrt": lambda u, x: u.number(1) / square_root(u, x),
    "exp": by_lanes(vector_math.exp),
    "log": by_lanes(vector_math.log),
    "sin": by_lanes(vector_math.sin),
    "cos": by_lanes(vector_math.cos),
    "atan2": by_lanes(vector_math.arctan2),
    "tanh": by_lanes(pointwise_math.tanh),
    "erf": by_lanes(pointwise_math.erf),
    "sigmoid": by_lanes(pointwise_math.sigmoid),
    "silu": by_lanes(pointwise_math.silu),
    "gelu": by_lanes(pointwise_math.gelu),
    "gelu_poly": by_lanes(pointwise_math.gelu_poly),
    "gelu_tanh": by_lanes(pointwise_math.gelu_tanh),
}
INTEGERS: dict[str, Expression] = {
    **NUMBERS,
    "div": divide,
    "maximum": larger,
    "minimum": smaller,
    "neg": lambda u, x: u.number(0) - x,
    "abs": lambda u, x: T.Select(x < u.number(0), u.number(0) - x, x),
}
# Bools are 0 or 1. NumPy has no `sub`, `neg` or `sign` of them.
BOOLS: dict[str, Expression] = {
    **ANY,
    "add": lambda u, a, b: T.bitwise_or(a, b),
    "mul": lambda u, a, b: T.bitwise_and(a, b),
    "maximum": larger,
    "minimum": smaller,
    "logical_and": lambda u, a, b: T.bitwise_and(a, b),
    "logical_or": lambda u, a, b: T.bitwise_or(a, b),
    "logical_not": lambda u, x: u.number(1) - x,
}
TABLES = dict.fromkeys(COMPUTED, INTEGERS) | {"f32": FLOATS, "bool": BOOLS}

COSTLY = {
    "pow": 40,
    "atan2": 16,
    "exp": 12,
    "log": 12,
    "sin": 20,
    "cos": 20,
    "div": 4,
    "sqrt": 4,
    "rsqrt": 8,
}
COSTLY |= dict.fromkeys(("tanh", "erf", "sigmoid", "silu", "gelu", "gelu_tanh", "gelu_poly"), 14)


def expression_of(spec: Spec) -> Expression:
    """How the spec's op computes one vector."""
    dtype = spec.operands[-1].dtype
    if spec.op == "cast":
        return partial(_cast, dtype=spec.results[0].dtype)
    expression = TABLES[dtype][spec.op]
    if spec.op != "clip":
        return expression
    # As the meaning does: the limits in the dtype of x.
    exact = float if dtype == "f32" else int
    limits = {name: exact(spec.attribute(name)) for name in ("low", "high")}
    return partial(expression, **limits)


def _cast(unit: Unit, x: Any, dtype: str) -> Any:
    if dtype == "bool":
        return unit.flag(x == unit.number(0), inverted=True)
    kind = COMPUTED[dtype]
    return x if kind == unit.kind else cast(kind, x, unit.width)


def supports(spec: Spec, lanes: Lanes) -> bool:
    dtypes = {tensor.dtype for tensor in (*spec.operands, *spec.results)}
    if not plain(spec) or not dtypes <= set(COMPUTED):
        return False
    return spec.op == "cast" or spec.op in TABLES[spec.operands[-1].dtype]


def build(spec: Spec, lanes: Lanes, name: str) -> Any:
    (result,) = spec.results
    strides = [broadcast_strides(x.shape, result.shape) for x in spec.operands]
    (*outer, run), (to, *steps) = merge(result.shape, row_major(result.shape), *strides)
    lanes = lanes if run >= lanes.float_lanes else Lanes()
    width = lanes.float_lanes
    unit = Unit(lanes, COMPUTED[spec.operands[-1].dtype])
    expression = expression_of(spec)
    with function(name, parameters(spec)) as f, nest(outer) as indices:
        *operands, y = f.buffers

        def vector(start: Any, _vectors: int) -> None:
            values = []
            for x, tensor, step in zip(operands, spec.operands, steps, strict=True):
                value = read(x, offset((*indices, start), step), step[-1], width)
                kind = COMPUTED[tensor.dtype]
                values.append(let(widened(value, tensor.dtype, width), width, kind))
            write(y, expression(unit, *values), result.dtype, offset((*indices, start), to), width)

        chunks(run, width, 1, vector)
    return f.result


def cost(spec: Spec, lanes: Lanes) -> float:
    return COSTLY.get(spec.op, 1) * prod(spec.results[0].shape) / lanes.float_lanes


KERNEL = Kernel(
    name="pointwise",
    ops=(*dict.fromkeys([*FLOATS, *INTEGERS, *BOOLS]), "cast"),
    supports=supports,
    build=build,
    cost=cost,
)
