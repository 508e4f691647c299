"""Device functions: the activations of the op, exact or as fast as halves allow.

``FAST`` is for results that become halves: hyperbolic tangents are the hardware's, off by 2**-11
(with ``ASM``; the interpreter has no inline assembly and computes them), and GELU is one of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

NAMES = ("none", "gelu", "gelu_poly", "gelu_tanh", "relu", "silu", "tanh", "sigmoid")


@triton.jit
def tangent(x: tl.tensor, FAST: tl.constexpr, ASM: tl.constexpr) -> tl.tensor:
    """The hyperbolic tangent."""
    if FAST and ASM:
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        # Near 0 the quotient cancels; there the series is right to float32.
        square = x * x
        series = 0.13333333333 + square * (-0.05396825397 + square * 0.02186948854)
        small = x + x * square * (-0.33333333333 + square * series)
        large = 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)
        return tl.where(square < 0.0625, small, large)


@triton.jit
def normal_gelu(x: tl.tensor, FAST: tl.constexpr, ASM: tl.constexpr) -> tl.tensor:
    """x * Phi(x), Phi the normal distribution function."""
    half = 0.5 * x
    if FAST:
        # Off by 2.5e-5 at most. From 5 on the tangent is 1, and the polynomial must not turn back.
        square = tl.minimum(x * x, 25.0)
        argument = x * (0.7975060 + square * (0.0370082 - square * 0.00035207))
        return half + half * tangent(argument, FAST, ASM)
    else:
        return half + half * tl.erf(x * 0.7071067811865476)


@triton.jit
def logistic(x: tl.tensor, FAST: tl.constexpr, ASM: tl.constexpr) -> tl.tensor:
    """1 / (1 + exp(-x))."""
    if FAST:
        return 0.5 + 0.5 * tangent(0.5 * x, FAST, ASM)
    else:
        return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def activate(x: tl.tensor, NAME: tl.constexpr, FAST: tl.constexpr, ASM: tl.constexpr) -> tl.tensor:
    """The activation NAME of x."""
    # A CPU's polynomial is GELU but for 3e-5, which codes of activations hide.
    if NAME == "gelu" or NAME == "gelu_poly":
        return normal_gelu(x, FAST, ASM)
    elif NAME == "gelu_tanh":
        argument = x * (0.7978845608 + 0.0356774081 * x * x)
        return 0.5 * x + 0.5 * x * tangent(argument, FAST, ASM)
    elif NAME == "relu":
        return tl.maximum(x, 0.0)
    elif NAME == "silu":
        return x * logistic(x, FAST, ASM)
    elif NAME == "tanh":
        return tangent(x, FAST, ASM)
    elif NAME == "sigmoid":
        return logistic(x, FAST, ASM)
    else:
        return x
