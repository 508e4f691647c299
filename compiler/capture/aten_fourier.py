"""ATen's Fourier transforms, as products with the matrices of the transforms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ir.graph import Node
from .aten_complex import Complex, form, is_all
from .site import Site, accept

_LONGEST = 2048


def _product(site: Site, x: Node, axis: int, matrix: np.ndarray) -> Node | None:
    """The elements of an axis replaced by sums of them; None for zeros."""
    if is_all(site, x, 0):
        return None
    weights = site.constant(matrix, "f32", f"{site.name}.weights")
    return site.move(site.make("linear", site.move(x, axis, -1), weights), -1, axis)


def _joined(site: Site, op: str, a: Node | None, b: Node | None) -> Node | None:
    if a is None or b is None:
        return a if b is None else site.make("neg", b) if op == "sub" else b
    return site.make(op, a, b)


def _matrix(count: int, size: int, forward: bool, norm: int) -> np.ndarray:
    """``count`` rows of the transform of ``size`` elements; norm 1 is by its root, 2 by it."""
    accept(size <= _LONGEST, f"a Fourier transform of {size} elements", f"at most {_LONGEST}")
    turns = np.outer(np.arange(count), np.arange(size)) % size / size
    return np.exp((-2j if forward else 2j) * np.pi * turns) / size ** (norm / 2)


def _transformed(site: Site, z: Complex, axis: int, matrix: np.ndarray) -> Complex:
    cos, sin = matrix.real, matrix.imag
    real = _joined(
        site, "sub", _product(site, z.real, axis, cos), _product(site, z.imag, axis, sin)
    )
    imag = _joined(
        site, "add", _product(site, z.real, axis, sin), _product(site, z.imag, axis, cos)
    )
    shape = list(z.real.type.shape)
    shape[axis] = len(matrix)
    zeros = site.broadcast(site.constant(0, "f32"), shape)
    return Complex(zeros if real is None else real, zeros if imag is None else imag)


@form("aten._fft_c2c", new=True)
def complex_to_complex(
    site: Site, z: Complex, axes: Sequence[int], norm: int, forward: bool
) -> Complex:
    for axis in axes:
        size = z.real.type.shape[axis]
        z = _transformed(site, z, axis % z.real.type.rank, _matrix(size, size, forward, norm))
    return z


@form("aten._fft_r2c", new=True)
def real_to_complex(site: Site, x: Node, axes: Sequence[int], norm: int, onesided: bool) -> Complex:
    *others, last = axes
    size = x.type.shape[last]
    count = size // 2 + 1 if onesided else size
    z = Complex(x, site.broadcast(site.constant(0, "f32"), x.type.shape))
    z = _transformed(site, z, last % x.type.rank, _matrix(count, size, True, norm))
    return complex_to_complex(site, z, others, norm, True)


@form("aten._fft_c2r", new=True)
def complex_to_real(site: Site, z: Complex, axes: Sequence[int], norm: int, size: int) -> Node:
    """The other half of the spectrum is the conjugate of the given one."""
    *others, last = axes
    z = complex_to_complex(site, z, others, norm, False)
    count = size // 2 + 1
    matrix = _matrix(size, size, False, norm)[:, :count]
    matrix[:, 1 : (size + 1) // 2] *= 2
    last %= z.real.type.rank
    z = Complex(*(site.slice(part, last, 0, count) for part in (z.real, z.imag)))
    return _transformed(site, z, last, matrix).real
