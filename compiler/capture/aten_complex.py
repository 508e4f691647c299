"""ATen calls on complex tensors, each of which is two real tensors: its parts.

The graph holds no complex numbers. Calls that move elements, and sums, act on each part by their
real lowering; products are written out. Parts that are known to be zero leave no terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..ir.graph import Node
from .chosen import Chosen, is_uniform
from .site import LOWERINGS, Lowering, Refused, Site, lowers

ADVICE = "write it with the real and imaginary parts (torch.view_as_real), or with cos and sin"


@dataclass(frozen=True, eq=False)
class Complex:
    """A complex tensor: two real ones of its shape."""

    real: Node
    imag: Node


def parts_of(value: Node | Complex) -> tuple[Node, ...]:
    """The real tensors that a value is made of."""
    return (value.real, value.imag) if isinstance(value, Complex) else (value,)


def parts_with_rows(value: Node | Complex, mark: Chosen) -> Sequence[Node]:
    """The parts of a marked value that hold rows: not one beside it that is the same for all."""
    parts = parts_of(value)
    return [part for part in parts if not is_uniform(part, mark.axis)] or parts


_MOVES = """
    _reshape_alias _to_copy _unsafe_index _unsafe_view alias alias_copy broadcast_to cat chunk clone
    concat concatenate contiguous cumsum detach detach_ diagonal dropout expand expand_copy flatten
    flip gather index index_select lift_fresh lift_fresh_copy mT mean moveaxis movedim narrow
    narrow_copy neg numpy_T permute permute_copy positive repeat repeat_interleave reshape roll
    select select_copy slice slice_copy split split_with_sizes squeeze stack sum swapaxes swapdims t
    take take_along_dim tensor_split tile transpose transpose_copy tril triu unbind unbind_copy
    unflatten unfold unfold_copy unsafe_split unsqueeze view view_copy
"""
_OF_TWO = """
    add copy expand_as fill rsub select_scatter slice_scatter sub subtract to type_as view_as
"""
# Calls that act on each part as on a real tensor -> which of their arguments have parts.
_PARTWISE = {
    **dict.fromkeys(_MOVES.split(), (0,)),
    **dict.fromkeys(_OF_TWO.split(), (0, 1)),
    "constant_pad_nd": (0, 2),
    "index_add": (0, 3),
    "index_put": (0, 2),
    "masked_fill": (0, 2),
    "pad": (0, 3),
    "scatter": (0, 3),
    "scatter_add": (0, 3),
    "where": (1, 2),
}
_PRODUCTS = frozenset(
    {"bmm", "dot", "ger", "inner", "matmul", "mm", "mul", "multiply", "mv", "outer"}
)
# Overloads whose name is in the tables above for another overload.
_FORMS: dict[str, Lowering] = {}


def form(*names: str, new: bool = False) -> Callable[[Lowering], Lowering]:
    """Enters the complex form of a call; one that only complex tensors have is ``new``."""

    def enter(function: Lowering) -> Lowering:
        _FORMS.update(dict.fromkeys(names, function))
        return lowers(*names)(function) if new else function

    return enter


def is_complex(fake: Any) -> bool:
    """Whether a result of torch.export is a complex tensor, or several of them."""
    if isinstance(fake, tuple | list):
        return any(is_complex(part) for part in fake)
    return isinstance(fake, Tensor) and fake.is_complex()


def has_complex(value: Any) -> bool:
    """Whether an argument is complex, or holds what is."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(has_complex(part) for part in value)
    return isinstance(value, Complex | complex)


def lower_complex(
    site: Site, lowering: Lowering, fake: Any, args: Sequence[Any], named: dict[str, Any]
) -> Any:
    """The result of a call that takes or gives complex tensors, in parts where torch has it so."""
    bare = site.operator
    own = _FORMS.get(site.target) or _FORMS.get(f"aten.{bare}")
    if own is not None:
        value = own(site, *args, **named)
    elif bare in _PRODUCTS and not named:
        value = product(site, lowering, *(as_complex(site, x) for x in args))
    elif bare in _PARTWISE:
        value = _partwise(site, lowering, args, named)
    else:
        raise Refused(f"{site.target} of complex numbers", ADVICE)
    return value if isinstance(value, tuple) else _as_torch_has_it(site, value, fake)


def _as_torch_has_it(site: Site, value: Any, fake: Any) -> Any:
    """Both parts in the shape of the result; a conversion to real numbers keeps the real part."""
    if not isinstance(value, Complex):
        return value
    if not is_complex(fake):
        return value.real
    if site.out is None:  # a choice by a constant mask, of a size that torch.export left open
        return value
    shape = site.out.shape
    return Complex(site.broadcast(value.real, shape), site.broadcast(value.imag, shape))


def as_complex(site: Site, x: Any) -> Complex:
    """A tensor or a Python number as a complex tensor."""
    return x if isinstance(x, Complex) else Complex(_part(site, x, "real"), _part(site, x, "imag"))


def _part(site: Site, x: Any, which: str) -> Node:
    """One part of a tensor or a Python number, as a tensor."""
    if isinstance(x, Complex):
        return x.real if which == "real" else x.imag
    if not isinstance(x, Node):
        return site.constant(getattr(x, which), "f32")
    if which == "real":
        return site.cast(x, "f32")
    return site.broadcast(site.constant(0, "f32"), x.type.shape)


def _partwise(site: Site, lowering: Lowering, args: Sequence[Any], named: dict[str, Any]) -> Any:
    places = _PARTWISE[site.operator]
    others = [x for place, x in enumerate(args) if place not in places]
    if has_complex(others) or has_complex(named):
        raise Refused(f"{site.target} with a complex argument", ADVICE)

    def part_of(x: Any, which: str) -> Any:
        if isinstance(x, list):
            return [part_of(one, which) for one in x]
        if isinstance(x, Node | Complex):
            return _part(site, x, which)
        return getattr(x, which) if isinstance(x, int | float | complex) else x

    real, imag = (
        lowering(site, *(part_of(x, w) if i in places else x for i, x in enumerate(args)), **named)
        for w in ("real", "imag")
    )
    if isinstance(real, tuple):
        return tuple(Complex(*parts) for parts in zip(real, imag, strict=True))
    return Complex(real, imag)


# --- arithmetic of parts that may be known ---


def is_all(site: Site, x: Node, number: float) -> bool:
    """Whether ``x`` is known to hold ``number`` everywhere."""
    while x.op in ("broadcast", "reshape"):
        x = x.operands[0]
    value = site.value(x)
    return value is not None and bool((value == number).all())


def _times(site: Site, x: Node, y: Node, lowering: Lowering | None = None) -> Node:
    """``x * y``, or another product of them; zero and one leave no call."""
    for known, other in ((x, y), (y, x)):
        if is_all(site, known, 0):
            return site.constant(0, "f32")
        if lowering is None and is_all(site, known, 1):
            return site.broadcast(other, site.out.shape)
    product: Node = site.make("mul", x, y) if lowering is None else lowering(site, x, y)
    return product


def _plus(site: Site, x: Node, y: Node) -> Node:
    for known, other in ((x, y), (y, x)):
        if is_all(site, known, 0):
            return other
    return site.make("add", x, y)


def _minus(site: Site, x: Node, y: Node) -> Node:
    if is_all(site, y, 0):
        return x
    return site.make("neg", y) if is_all(site, x, 0) else site.make("sub", x, y)


def product(site: Site, lowering: Lowering, a: Complex, b: Complex) -> Complex:
    """``a * b``, or their product of matrices."""
    by = None if site.operator in ("mul", "multiply") else lowering
    return Complex(
        _minus(site, _times(site, a.real, b.real, by), _times(site, a.imag, b.imag, by)),
        _plus(site, _times(site, a.real, b.imag, by), _times(site, a.imag, b.real, by)),
    )


def times_itself(site: Site, z: Complex) -> Complex:
    return product(site, LOWERINGS["aten.mul"], z, z)


def squared_size(site: Site, z: Complex) -> Node:
    return _plus(site, _times(site, z.real, z.real), _times(site, z.imag, z.imag))


# --- calls between real and complex tensors ---


@form("aten.view_as_complex", "aten.view_as_complex_copy", new=True)
def view_as_complex(site: Site, x: Node) -> Complex:
    last = x.type.rank - 1
    return Complex(site.select(x, last, 0), site.select(x, last, 1))


@form("aten.view_as_real", "aten.view_as_real_copy", new=True)
def view_as_real(site: Site, z: Complex) -> Node:
    shape = z.real.type.shape
    pair = [site.reshape(part, (*shape, 1)) for part in (z.real, z.imag)]
    return site.concat(pair, len(shape))


@form("aten.view.dtype")
def view_dtype(site: Site, x: Any, dtype: str) -> Any:
    """A complex tensor as its pairs of reals laid into the last axis, and back."""
    if isinstance(x, Complex) and dtype == "f32":
        return site.reshape(view_as_real(site, x), site.out.shape)
    if isinstance(x, Node) and x.type.dtype == "f32":
        return view_as_complex(site, site.reshape(x, (*site.out.shape, 2)))
    if isinstance(x, Complex) and dtype == "torch.complex64":
        return x
    raise Refused(f"the bits of a tensor read as {dtype}", ADVICE)


@form("aten.complex", new=True)
def complex_(site: Site, real: Node, imag: Node) -> Complex:
    return Complex(real, imag)


@form("aten.polar", new=True)
def polar(site: Site, size: Node, angle: Node) -> Complex:
    cos, sin = site.make("cos", angle), site.make("sin", angle)
    return Complex(_times(site, size, cos), _times(site, size, sin))


@form("aten.real", new=True)
def real(site: Site, z: Complex) -> Node:
    return z.real


@form("aten.imag", new=True)
def imag(site: Site, z: Complex) -> Node:
    return z.imag


@form("aten.abs")
def size_of(site: Site, z: Complex) -> Node:
    return site.make("sqrt", squared_size(site, z))


# --- calls from complex to complex ---


@form("aten.resolve_conj", "aten.resolve_neg", new=True)
def resolved(site: Site, x: Any) -> Any:
    return x


@form(
    "aten._conj",
    "aten._conj_physical",
    "aten.conj",
    "aten.conj_physical",
    "aten._conj_copy",
    new=True,
)
def conj(site: Site, z: Complex) -> Complex:
    return Complex(z.real, site.make("neg", z.imag))


@form("aten.exp")
def exp(site: Site, z: Complex) -> Complex:
    is_phase = is_all(site, z.real, 0)
    size = site.constant(1, "f32") if is_phase else site.make("exp", z.real)
    return polar(site, size, z.imag)


@form("aten.square")
def square(site: Site, z: Complex) -> Complex:
    return times_itself(site, z)


@form("aten.div.Tensor", "aten.div.Scalar", "aten.divide.Tensor", "aten.true_divide")
def divide(site: Site, a: Any, b: Any) -> Complex:
    a = as_complex(site, a)
    if isinstance(b, Complex | complex):
        b = as_complex(site, b)
        a = product(site, LOWERINGS["aten.mul"], a, conj(site, b))
        b = squared_size(site, b)
    b = site.tensor(b, "f32")
    return Complex(site.make("div", a.real, b), site.make("div", a.imag, b))


@form("aten.reciprocal")
def reciprocal(site: Site, z: Complex) -> Complex:
    return divide(site, 1, z)
