"""log, sin, cos, atan2 and pow as TIR expressions, exp over its whole range: no libm, any lanes.

As in ``pointwise_math``: vectors of ``lanes.float_lanes`` float32 in and out, and the errors stated
are the largest found (tests/kernels/test_vector_math.py). Special values are NumPy's. sin, cos and
pow are rare in models and use doubles for the one step that needs more than 24 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .elements import is_nan, number
from .lanes import Lanes
from .pointwise_math import EXP2, LN2_HIGH, LN2_LOW, polynomial
from .pointwise_math import exp as clamped_exp
from .tir import T, broadcast, cast, constant, dtype_of, let

SMALLEST_NORMAL = 2.0**-126
ROOT_HALF_BITS = 0x3F3504F3
# Beyond it neighbouring floats are 64 apart, and the reduction by pi / 2 leaves the int32 range.
TRIGONOMETRIC_LIMIT = 2.0**30

# (log(1 + x) - x + x**2 / 2) / x**3 on [sqrt(1/2) - 1, sqrt(2) - 1], and sine and cosine on
# [-pi/4, pi/4]: from Cephes (logf, sinf).
LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
# (atan(x) - x) / x**3 in powers of x**2 on [-tan(pi/8), tan(pi/8)]: from Cephes (atanf).
ATAN = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)
# log2((1 + s) / (1 - s)) / s in powers of s**2.
LOG2 = tuple(2 / (n * math.log(2)) for n in range(13, 0, -2))


def exp(lanes: Lanes, x: Any) -> Any:
    """e**x, relative error 5e-7; infinity above 88.73, 0 below -104."""
    width = lanes.float_lanes
    root = let(clamped_exp(lanes, x * constant(0.5, width)), width)
    return root * root


def _mantissa_and_exponent(x: Any, width: int) -> tuple[Any, Any]:
    """m in [sqrt(1/2), sqrt(2)) and int32 e with x = m * 2**e, for a positive ``x``."""
    small = x < constant(SMALLEST_NORMAL, width)
    normal = T.Select(small, x * constant(2.0**23, width), x)
    bits = let(T.reinterpret(dtype_of("int32", width), normal), width, "int32")
    shift = number("int32", 23, width)
    exponent = T.shift_right(bits - number("int32", ROOT_HALF_BITS, width), shift)
    exponent = let(exponent, width, "int32")
    mantissa = T.reinterpret(dtype_of("float32", width), bits - T.shift_left(exponent, shift))
    less = T.Select(small, number("int32", 23, width), number("int32", 0, width))
    return let(mantissa, width), let(exponent - less, width, "int32")


def _positive(x: Any, width: int) -> Any:
    """``x``, or 1 where it is not positive and finite."""
    one = constant(1, width)
    x = let(T.Select(x > constant(0, width), x, one), width)
    return let(T.Select(x < constant(math.inf, width), x, one), width)


def log(lanes: Lanes, x: Any) -> Any:
    """Natural logarithm, relative error 2e-7; -infinity at 0, NaN below."""
    width = lanes.float_lanes
    x = let(x, width)
    mantissa, power = _mantissa_and_exponent(_positive(x, width), width)
    whole = let(lanes.as_float(power), width)
    f = let(mantissa - constant(1, width), width)
    square = let(f * f, width)
    tail = f * square * polynomial(lanes, f, LOG)
    tail = lanes.multiply_add(tail, whole, constant(LN2_LOW, width))
    tail = lanes.multiply_add(tail, square, constant(-0.5, width))
    result = lanes.multiply_add(f + tail, whole, constant(LN2_HIGH, width))
    infinity, zero = constant(math.inf, width), constant(0, width)
    result = T.Select(x > zero, T.Select(x < infinity, result, x), constant(math.nan, width))
    result = T.Select(x == zero, constant(-math.inf, width), result)
    return T.Select(is_nan(x, width), x, result)


def _double(value: Any, width: int) -> Any:
    return let(cast("float64", value, width), width, "float64")


def _double_polynomial(x: Any, coefficients: Sequence[float], width: int) -> Any:
    result = number("float64", coefficients[0], width)
    for coefficient in coefficients[1:]:
        result = result * x + number("float64", coefficient, width)
    return result


def _nearest(value: Any, width: int) -> Any:
    """The int32 nearest to a double of magnitude under 2**31; ties away from zero."""
    half = number("float64", 0.5, width)
    below = T.Select(value < number("float64", 0, width), number("float64", -0.5, width), half)
    return let(cast("int32", value + below, width), width, "int32")


def _quarter_turns(lanes: Lanes, x: Any, ahead: int) -> Any:
    """The sine of ``x`` plus ``ahead`` quarter turns."""
    width = lanes.float_lanes
    x = let(x, width)
    limit = constant(TRIGONOMETRIC_LIMIT, width)
    inside = let(T.Select(lanes.absolute(x) <= limit, x, constant(0, width)), width)
    exact = _double(inside, width)
    turns = _nearest(exact * number("float64", 2 / math.pi, width), width)
    rest = exact - _double(turns, width) * number("float64", math.pi / 2, width)
    rest = let(cast("float32", rest, width), width)
    square = let(rest * rest, width)
    sine = lanes.multiply_add(rest, rest * square, polynomial(lanes, square, SIN))
    cosine = lanes.multiply_add(
        constant(1, width) - constant(0.5, width) * square,
        square * square,
        polynomial(lanes, square, COS),
    )
    turns = let(turns + number("int32", ahead, width), width, "int32")
    zero = number("int32", 0, width)
    even = T.bitwise_and(turns, number("int32", 1, width)) == zero
    value = let(T.Select(even, sine, cosine), width)
    front = T.bitwise_and(turns, number("int32", 2, width)) == zero
    value = T.Select(front, value, value * constant(-1, width))
    return T.Select(lanes.absolute(x) <= limit, value, constant(math.nan, width))


def sin(lanes: Lanes, x: Any) -> Any:
    """Sine, error 2e-7 up to 2**20; NaN beyond 2**30."""
    return _quarter_turns(lanes, x, 0)


def cos(lanes: Lanes, x: Any) -> Any:
    """Cosine, error 2e-7 up to 2**20; NaN beyond 2**30."""
    return _quarter_turns(lanes, x, 1)


def arctan2(lanes: Lanes, y: Any, x: Any) -> Any:
    """The angle of the point (x, y), error 4e-7; with NumPy's signs where one of them is 0."""
    width = lanes.float_lanes
    zero, one = constant(0, width), constant(1, width)
    y, x = let(y, width), let(x, width)
    high, wide = let(lanes.absolute(y), width), let(lanes.absolute(x), width)
    steep = high > wide
    over = let(T.Select(steep, wide, high), width)
    under = let(T.Select(steep, high, wide), width)
    # 0 / 0 is 0, and infinity by infinity 1.
    ratio = let(over / T.Select(under > zero, under, one), width)
    ratio = let(T.Select(over == constant(math.inf, width), one, ratio), width)
    far = ratio > constant(math.tan(math.pi / 8), width)
    small = let(T.Select(far, (ratio - one) / (ratio + one), ratio), width)
    square = let(small * small, width)
    angle = lanes.multiply_add(small, small * square, polynomial(lanes, square, ATAN))
    angle = angle + T.Select(far, constant(math.pi / 4, width), zero)
    angle = let(angle, width)
    angle = let(T.Select(steep, constant(math.pi / 2, width) - angle, angle), width)
    angle = let(T.Select(_is_negative(x, width), constant(math.pi, width) - angle, angle), width)
    angle = let(T.Select(_is_negative(y, width), angle * constant(-1, width), angle), width)
    angle = let(T.Select(is_nan(y, width), y, angle), width)
    return T.Select(is_nan(x, width), x, angle)


def _is_negative(x: Any, width: int) -> Any:
    """Whether the sign bit of ``x`` is set."""
    return T.reinterpret(dtype_of("int32", width), x) < broadcast(T.int32(0), width)


def _magnitude(lanes: Lanes, base: Any, exponent: Any) -> Any:
    """base**exponent for a positive finite ``base``; infinity and 0 where it leaves the range."""
    width = lanes.float_lanes
    mantissa, power = _mantissa_and_exponent(base, width)
    m, one = _double(mantissa, width), number("float64", 1, width)
    s = let((m - one) / (m + one), width, "float64")
    square = let(s * s, width, "float64")
    log2 = _double(power, width) + s * _double_polynomial(square, LOG2, width)
    y = let(log2 * _double(exponent, width), width, "float64")
    top, bottom = number("float64", 250, width), number("float64", -250, width)
    y = let(T.Select(y < top, y, top), width, "float64")
    y = let(T.Select(y > bottom, y, bottom), width, "float64")
    whole = _nearest(y, width)
    fraction = let(cast("float32", y - _double(whole, width), width), width)
    # 2**whole in two factors, so that neither leaves the range of normal numbers.
    half = let(T.shift_right(whole, number("int32", 1, width)), width, "int32")
    scaled = polynomial(lanes, fraction, EXP2) * lanes.power_of_two(half)
    return scaled * lanes.power_of_two(whole - half)


def _parity(lanes: Lanes, x: Any) -> tuple[Any, Any]:
    """Whether ``x`` is integral, and whether it is odd: two int32 flags."""
    width = lanes.float_lanes
    one, zero = number("int32", 1, width), number("int32", 0, width)
    # Every float from 2**24 on is an even integer.
    inside = lanes.absolute(x) < constant(2.0**24, width)
    small = let(T.Select(inside, x, constant(0, width)), width)
    whole = let(cast("int32", small, width), width, "int32")
    integral = let(T.Select(lanes.as_float(whole) == small, one, zero), width, "int32")
    return integral, let(T.bitwise_and(whole, integral), width, "int32")


def power(lanes: Lanes, base: Any, exponent: Any) -> Any:
    """base**exponent, relative error 3e-7."""
    width = lanes.float_lanes
    zero, one = constant(0, width), constant(1, width)
    infinity, nan = constant(math.inf, width), constant(math.nan, width)
    none = broadcast(T.int32(0), width)
    base, exponent = let(base, width), let(exponent, width)
    size = let(lanes.absolute(base), width)
    result = let(_magnitude(lanes, _positive(size, width), exponent), width)
    # 0 and infinity, and the exponents that are infinite.
    grows, shrinks = (
        T.Select(exponent > zero, infinity, zero),
        T.Select(exponent < zero, infinity, zero),
    )
    result = let(T.Select(size == infinity, grows, result), width)
    result = let(T.Select(size == zero, shrinks, result), width)
    limit = let(T.Select(size > one, grows, shrinks), width)
    limit = T.Select(size == one, one, limit)
    result = let(T.Select(lanes.absolute(exponent) == infinity, limit, result), width)
    # A negative base (-0 too): the sign of an odd power, and NaN for one that is not integral.
    integral, odd = _parity(lanes, exponent)
    negative = _is_negative(base, width)
    signed = T.Select(odd == none, result, result * constant(-1, width))
    result = let(T.Select(negative, signed, result), width)
    undefined = T.Select(size < infinity, nan, result)
    undefined = let(T.Select(integral == none, undefined, result), width)
    result = let(T.Select(base < zero, undefined, result), width)
    result = let(T.Select(is_nan(base, width), base, result), width)
    result = let(T.Select(is_nan(exponent, width), exponent, result), width)
    result = let(T.Select(exponent == zero, one, result), width)
    return T.Select(base == one, one, result)
