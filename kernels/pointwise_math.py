"""exp, tanh, sigmoid, erf and the activations as TIR expressions: no libm, any lanes.

Every function takes a vector of ``lanes.float_lanes`` float32 and gives one. The errors stated are
the largest found over a dense sweep of the range (tests/kernels/test_pointwise_math.py).

NaN stays NaN, at no cost: ``lanes.maximum`` and ``lanes.minimum`` give their second operand where
one of the two is NaN. What becomes an integer takes it as the first, since no integer is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .gelu_numbers import GELU_POLY_LIMIT, GELU_POLY_SQUARINGS, GELU_POLY_TAIL
from .lanes import Lanes
from .tir import constant, let

LOG2_E = 1.4426950408889634
# ln 2 in two parts: the first has 9 significant bits, so n * LN2_HIGH is exact for |n| < 2**15.
LN2_HIGH = 0.693359375
LN2_LOW = -2.12194440e-4

# 2**f on [-1/2, 1/2] for relative error (least squares, reweighted to minimax): 2e-9.
EXP2 = (
    1.5353360504377633e-4,
    1.3398875016719103e-3,
    9.61843691766262e-3,
    5.5503323674201965e-2,
    2.4022647738456726e-1,
    6.931471824645996e-1,
    1.0,
)
# Rational functions of x**2 on the clamped range, from Eigen (generic_fast_erf and _tanh).
ERF_LIMIT = 4.0
ERF_OVER = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
ERF_UNDER = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)
# (1 - Phi(t))**(1/32) on the clamped range, highest power first: minimax (Lawson) for the error of
# GELU, with a last one such that GELU is x / 2 next to zero.
GELU_LIMIT = 5.225
GELU_TAIL = (
    -1.2915603292640299e-05,
    0.00024872078211046755,
    -0.0008947639726102352,
    -0.009420455433428288,
    -0.024400943890213966,
    0.9785720705986023,
)
TANH_LIMIT = 7.90531110763549805
TANH_OVER = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
TANH_UNDER = (
    1.19825839466702e-06,
    1.18534705686654e-04,
    2.26843463243900e-03,
    4.89352518554385e-03,
)


def polynomial(lanes: Lanes, x: Any, coefficients: Sequence[float]) -> Any:
    """The polynomial in ``x``, a name; highest power first."""
    result = constant(coefficients[0], lanes.float_lanes)
    for coefficient in coefficients[1:]:
        result = lanes.multiply_add(constant(coefficient, lanes.float_lanes), result, x)
    return result


def clamp(lanes: Lanes, x: Any, low: float, high: float) -> Any:
    """``x`` limited to [low, high]; NaN stays."""
    width = lanes.float_lanes
    return lanes.maximum(constant(low, width), let(lanes.minimum(constant(high, width), x), width))


def _scaled(lanes: Lanes, fraction: Any, power: Any) -> Any:
    return polynomial(lanes, fraction, EXP2) * lanes.power_of_two(power)


def exp2(lanes: Lanes, x: Any) -> Any:
    """2**x for x < 127.5, relative error 2e-7; 0 below -126.5."""
    width = lanes.float_lanes
    x, low = let(x, width), constant(-127.0, width)
    power = let(lanes.round_to_int32(let(lanes.maximum(x, low), width)), width, "int32")
    fraction = lanes.maximum(low, x) - lanes.as_float(power)
    return _scaled(lanes, let(fraction, width), power)


def exp(lanes: Lanes, x: Any) -> Any:
    """e**x, relative error 2e-7; infinity above 88.38, and x is taken as -87.3 below that."""
    width = lanes.float_lanes
    low = constant(-87.3, width)
    x = let(lanes.minimum(constant(88.7, width), let(x, width)), width)
    number = let(lanes.maximum(x, low), width)
    power = let(lanes.round_to_int32(number * constant(LOG2_E, width)), width, "int32")
    whole = let(lanes.as_float(power), width)
    # x - whole * ln 2, in two steps, so that a large x loses nothing.
    rest = lanes.multiply_add(lanes.maximum(low, x), whole, constant(-LN2_HIGH, width))
    rest = lanes.multiply_add(rest, whole, constant(-LN2_LOW, width))
    return _scaled(lanes, let(rest * constant(LOG2_E, width), width), power)


def sigmoid(lanes: Lanes, x: Any) -> Any:
    """1 / (1 + e**-x), relative error 3e-7 for x > -87."""
    one = constant(1.0, lanes.float_lanes)
    return one / (one + exp(lanes, constant(0.0, lanes.float_lanes) - x))


def _odd_rational(
    lanes: Lanes, x: Any, limit: float, over: Sequence[float], under: Sequence[float]
) -> Any:
    width = lanes.float_lanes
    x = let(clamp(lanes, let(x, width), -limit, limit), width)
    square = let(x * x, width)
    return x * polynomial(lanes, square, over) / polynomial(lanes, square, under)


def tanh(lanes: Lanes, x: Any) -> Any:
    """Hyperbolic tangent, relative error 4e-7; 1 - 1e-7 at the clamp."""
    return _odd_rational(lanes, x, TANH_LIMIT, TANH_OVER, TANH_UNDER)


def erf(lanes: Lanes, x: Any) -> Any:
    """Error function, error 4e-7."""
    return _odd_rational(lanes, x, ERF_LIMIT, ERF_OVER, ERF_UNDER)


def gelu(lanes: Lanes, x: Any) -> Any:
    """x * Phi(x) (erf form), error 5e-7, and 4e-6 \\|x\\| for a small x.

    No division: it is max(x, 0) - t * (1 - Phi(t)) with t = \\|x\\|, and a high power of a
    polynomial falls as 1 - Phi does, like exp(-t**2 / 2).
    """
    width = lanes.float_lanes
    half, x = constant(0.5, width), let(x, width)
    size = let(lanes.absolute(x), width)
    t = let(lanes.minimum(constant(GELU_LIMIT, width), size), width)
    tail = _squared(lanes, polynomial(lanes, t, GELU_TAIL), 5)
    # Half the sum of x and its magnitude is max(x, 0), and NaN for -infinity, as 0 * infinity is.
    return lanes.multiply_add(half * size, half, x) - t * tail


def gelu_poly(lanes: Lanes, x: Any) -> Any:
    """GELU as the op `gelu_poly` has it: 3e-5 off at most."""
    width = lanes.float_lanes
    x = let(x, width)
    t = let(lanes.minimum(constant(GELU_POLY_LIMIT, width), let(lanes.absolute(x), width)), width)
    square = let(t * t, width)
    # Two chains of three take less time than one of six.
    low, high = (_quadratic(lanes, t, square, GELU_POLY_TAIL[i : i + 3]) for i in (0, 3))
    root = lanes.multiply_add(low, square * t, high)
    tail = _squared(lanes, root, GELU_POLY_SQUARINGS)
    return lanes.maximum(constant(0.0, width), x) - t * tail


def _quadratic(lanes: Lanes, x: Any, square: Any, coefficients: Sequence[float]) -> Any:
    """The polynomial in ``x``, given its square; lowest power first."""
    c0, c1, c2 = (constant(c, lanes.float_lanes) for c in coefficients)
    return lanes.multiply_add(lanes.multiply_add(c0, x, c1), square, c2)


def _squared(lanes: Lanes, x: Any, times: int) -> Any:
    """``x`` to the power of 2**times."""
    for _ in range(times):
        x = let(x, lanes.float_lanes)
        x = x * x
    return x


def gelu_tanh(lanes: Lanes, x: Any) -> Any:
    """The tanh form of GELU, as x * sigmoid(2 u): error 3e-7 * max(1, \\|x\\|)."""
    width = lanes.float_lanes
    x = let(x, width)
    slope = 2 * 0.7978845608028654
    inner = lanes.multiply_add(constant(slope, width), x * x, constant(slope * 0.044715, width))
    return x * sigmoid(lanes, x * inner)


def silu(lanes: Lanes, x: Any) -> Any:
    """x * sigmoid(x), relative error 4e-7."""
    x = let(x, lanes.float_lanes)
    return x * sigmoid(lanes, x)


def relu(lanes: Lanes, x: Any) -> Any:
    """max(x, 0)."""
    return lanes.maximum(constant(0.0, lanes.float_lanes), let(x, lanes.float_lanes))


def none(lanes: Lanes, x: Any) -> Any:
    """x itself."""
    return x


# By the names of the IR's ``activation`` attribute.
ACTIVATIONS: dict[str, Callable[[Lanes, Any], Any]] = {
    "none": none,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "gelu_poly": gelu_poly,
    "relu": relu,
    "silu": silu,
    "tanh": tanh,
    "sigmoid": sigmoid,
}
