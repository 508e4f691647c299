"""ATen calls on complex tensors that take sizes, angles, powers, and products of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product as every_choice
from typing import Any

from ..ir.graph import Node
from .aten_complex import (
    ADVICE,
    Complex,
    as_complex,
    divide,
    form,
    is_all,
    polar,
    product,
    size_of,
    times_itself,
)
from .aten_elementwise import compare
from .site import LOWERINGS, Refused, Site, lowers


@lowers("aten.angle")
def angle_of_real(site: Site, x: Node) -> Node:
    """Half a turn for negative numbers."""
    x = site.cast(x, "f32")
    half, none = site.constant(math.pi, "f32"), site.constant(0, "f32")
    turn = site.make("where", compare(site, "less", x, 0), half, none)
    return site.make("where", site.make("not_equal", x, x), x, turn)


@form("aten.angle")
def angle(site: Site, z: Complex) -> Node:
    return site.make("atan2", z.imag, z.real)


@form("aten.sgn")
def direction(site: Site, z: Complex) -> Complex:
    """``z`` over its size; zero of zero."""
    size = size_of(site, z)
    size = site.make("where", compare(site, "equal", size, 0), site.constant(1, "f32"), size)
    return divide(site, z, size)


@form("aten.log")
def log(site: Site, z: Complex) -> Complex:
    return Complex(site.make("log", size_of(site, z)), angle(site, z))


@form("aten.sqrt")
def square_root(site: Site, z: Complex) -> Complex:
    size = site.make("sqrt", size_of(site, z))
    return polar(site, size, site.make("mul", angle(site, z), site.constant(0.5, "f32")))


@form("aten.pow")
def power(site: Site, z: Any, exponent: Any) -> Complex:
    whole = isinstance(exponent, int | float) and float(exponent).is_integer()
    if not isinstance(z, Complex) or not whole or not 1 <= abs(exponent) <= 16:
        advice = "write the products out, or turn by torch.polar"
        raise Refused("a power of complex numbers that is no small whole number", advice)
    result: Complex | None = None
    left = abs(int(exponent))
    while left:
        if left % 2:
            by = LOWERINGS["aten.mul"]
            result = z if result is None else product(site, by, result, z)
        left //= 2
        z = times_itself(site, z) if left else z
    assert result is not None, "a power of 0"
    return divide(site, 1, result) if exponent < 0 else result


@form("aten.cumprod")
def running_product(site: Site, z: Complex, axis: int, **_: Any) -> Complex:
    """In as many steps as the length has binary digits."""
    axis %= z.real.type.rank
    size, reach = z.real.type.shape[axis], 1
    while reach < size:
        shape = list(z.real.type.shape)
        shape[axis] = reach
        first = [site.broadcast(site.constant(n, "f32"), shape) for n in (1, 0)]
        kept = [site.slice(part, axis, 0, size - reach) for part in parts(z)]
        earlier = [site.concat(pair, axis) for pair in zip(first, kept, strict=True)]
        z = product(site, LOWERINGS["aten.mul"], z, Complex(*earlier))
        reach *= 2
    return z


@form("aten.prod")
def product_of_axis(site: Site, z: Complex, axis: int, keep: bool = False, **_: Any) -> Complex:
    axis %= z.real.type.rank
    size = z.real.type.shape[axis]
    whole = replace(site, out=z.real.type)
    last = (site.slice(y, axis, size - 1, size) for y in parts(running_product(whole, z, axis)))
    return Complex(*(site.reshape(y, site.out.shape) for y in last))


@form("aten.eq")
def equal(site: Site, a: Any, b: Any) -> Node:
    a, b = as_complex(site, a), as_complex(site, b)
    parts = (site.make("equal", a.real, b.real), site.make("equal", a.imag, b.imag))
    return site.make("logical_and", *parts)


@form("aten.ne")
def not_equal(site: Site, a: Any, b: Any) -> Node:
    return site.make("logical_not", equal(site, a, b))


@form("aten.isfinite")
def is_finite(site: Site, z: Complex) -> Node:
    return site.make("logical_and", *(LOWERINGS["aten.isfinite"](site, x) for x in parts(z)))


def parts(z: Complex) -> tuple[Node, Node]:
    return z.real, z.imag


@form("aten.linalg_vector_norm", "aten.norm")
def vector_norm(site: Site, z: Complex, *options: Any, **named: Any) -> Any:
    return LOWERINGS["aten.norm"](site, size_of(site, z), *options, **named)


@form("aten.einsum")
def einsum(site: Site, equation: str, operands: Sequence[Any], **_: Any) -> Complex:
    """The sum, over every choice of a part of each operand, of their real product."""
    lowering = LOWERINGS["aten.einsum"]
    choices = [[(0, x)] if isinstance(x, Node) else list(enumerate(parts(x))) for x in operands]
    found: list[Node | None] = [None, None]
    for choice in every_choice(*choices):
        if any(is_all(site, x, 0) for _, x in choice):
            continue
        turns = sum(which for which, _ in choice)
        term = lowering(site, equation, [x for _, x in choice])
        before = found[turns % 2]
        if before is None:
            term = site.make("neg", term) if turns % 4 > 1 else term
        else:
            term = site.make("sub" if turns % 4 > 1 else "add", before, term)
        found[turns % 2] = term
    zero = site.constant(0, "f32")
    real, imag = (zero if part is None else part for part in found)
    return Complex(real, imag)


@form("aten.linear")
def linear(site: Site, x: Any, w: Any, bias: Any = None) -> Complex:
    y = product(site, LOWERINGS["aten.linear"], as_complex(site, x), as_complex(site, w))
    return y if bias is None else _sum(site, y, bias)


def _sum(site: Site, a: Any, b: Any, scale: Any = 1) -> Complex:
    a, b = as_complex(site, a), as_complex(site, b)
    if scale != 1:
        b = product(site, LOWERINGS["aten.mul"], b, as_complex(site, scale))
    return Complex(site.make("add", a.real, b.real), site.make("add", a.imag, b.imag))


@form("aten.addcmul")
def addcmul(site: Site, x: Any, a: Any, b: Any, value: Any = 1) -> Complex:
    y = product(site, LOWERINGS["aten.mul"], as_complex(site, a), as_complex(site, b))
    return _sum(site, x, y, value)


@form("aten.addmm", "aten.addmv", "aten.baddbmm")
def product_and_sum(
    site: Site, bias: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1
) -> Complex:
    if beta != 1:
        raise Refused(f"{site.target} of complex numbers with beta", ADVICE)
    a, b = as_complex(site, a), as_complex(site, b)
    return _sum(site, bias, product(site, LOWERINGS["aten.matmul"], a, b), alpha)
