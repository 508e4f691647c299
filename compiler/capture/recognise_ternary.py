"""Products with constant matrices, and whether such a matrix is ternary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..ir.graph import Node
from .recognise_probe import Probe

Array = np.ndarray
NEAR = 4e-6
CONVOLUTIONS = frozenset({"conv2d"})


@dataclass(frozen=True)
class Product:
    """Rows times w.T + bias: the ``node``, its operand x that holds rows, and w [N, K].

    ``constant`` is the operand that holds w, transposed where ``flipped`` says so.
    """

    node: Node
    x: Node
    constant: Node
    flipped: bool
    w: Array
    bias: Array | None

    def held(self, w: Array) -> Array:
        """The value of ``constant`` with which the product is by ``w``."""
        w = w.T if self.flipped else w
        shape = self.constant.type.shape
        if self.node.op in CONVOLUTIONS:
            return w.reshape(shape)
        return np.broadcast_to(w, shape)


@dataclass(frozen=True)
class Ternary:
    """w = codes * scale: codes -1, 0, 1 of [N, K]; scale one number, or one a row.

    ``drift``: by how much w differs, relative to the scale; 0 but for straight-through rounding.
    """

    codes: Array
    scale: Array
    drift: float

    @property
    def value(self) -> Array:
        """codes * scale, [N, K] in double precision."""
        scale = self.scale.astype(np.float64)
        return np.asarray(self.codes * (scale if scale.ndim == 0 else scale[:, None]))

    def times(self, factor: Array) -> Ternary:
        """The same with its scale, or the scale of each row, times ``factor``."""
        if (factor == 1).all():
            return self
        factor = factor[0] if factor.ndim and (factor == factor[0]).all() else factor
        return replace(self, scale=np.asarray(self.scale * factor))

    def __str__(self) -> str:
        kind = "one scale" if self.scale.ndim == 0 else "a scale a row"
        zeros = 100 * float(np.mean(self.codes == 0))
        words = f"ternary {list(self.codes.shape)}, {kind}, {zeros:.0f} % zeros"
        return words + (f", straight-through rounding {self.drift:.0e}" if self.drift else "")


def product_of(probe: Probe, node: Node) -> Product | None:
    """``node`` as a product of rows with one constant matrix, whatever axis the rows lie along."""
    if node.op == "linear" and node["activation"] == "none":
        x, w, *bias = node.operands
        if x.op == "constant" and not bias:
            return _product(probe, node, w, x, flipped=False)  # rows of w, along the first axis
        if all(part.op == "constant" for part in bias):
            return _product(probe, node, x, w, flipped=False, bias=bias)
    if node.op == "matmul":
        x, w = node.operands
        if x.op == "constant":
            return _product(probe, node, w, x, flipped=False)
        return _product(probe, node, x, w, flipped=True)
    if node.op in CONVOLUTIONS and _is_pointwise(node):
        x, w, *bias = node.operands
        if all(part.op == "constant" for part in bias):
            return _product(probe, node, x, w, flipped=False, bias=bias)
    return None


def _is_pointwise(node: Node) -> bool:
    """Whether a convolution looks at one place at a time."""
    window = node.operands[1].type.shape[2:]
    return set(window) == set(node["stride"]) == {1} and not any(node["padding"])


def _product(
    probe: Probe, node: Node, x: Node, constant: Node, flipped: bool, bias: Sequence[Node] = ()
) -> Product | None:
    """The product, if its matrix is constant and, where it is there several times, always one."""
    if x.op == "constant" or constant.op != "constant" or constant.type.rank < 2:
        return None
    value = _value(probe, constant)
    if node.op in CONVOLUTIONS:
        value = value.reshape(value.shape[:2])
    w = value[(0,) * (value.ndim - 2)]
    if not np.array_equal(np.broadcast_to(w, value.shape), value):
        return None
    added = _value(probe, bias[0]) if bias else None
    return Product(node, x, constant, flipped, w.T if flipped else w, added)


def _value(probe: Probe, node: Node) -> Array:
    value: Array = probe.evaluate(node, {})
    return value


def as_ternary(w: Array) -> Ternary | None:
    """``w`` [N, K] as ternary codes times one scale, else times one scale a row.

    Exact, or as near as the straight-through form ``w + (quantised - w)`` comes in float32.
    """
    size = np.abs(w)
    largest = size.max(axis=1, initial=0)  # [N]
    top = largest.max(initial=0)
    if not top or not np.isfinite(size).all():
        return None
    codes = _codes(w, size, np.full_like(largest, top))
    if codes is not None:
        scale = np.asarray(_commonest(size[codes != 0]), w.dtype)
        return Ternary(codes, scale, _drift(w, codes, scale))
    codes = _codes(w, size, largest) if w.shape[1] > 1 else None
    if codes is None:
        return None
    by_row = [_commonest(row[code != 0]) for row, code in zip(size, codes, strict=True)]
    scale = np.asarray(by_row, w.dtype)
    return Ternary(codes, scale, _drift(w, codes, scale))


def _codes(w: Array, size: Array, largest: Array) -> Array | None:
    """-1, 0, 1 where each magnitude is near 0 or the ``largest`` of its row; else None."""
    limit = NEAR * largest[:, None]
    used = size > limit
    if (used & (np.abs(size - largest[:, None]) > limit)).any():
        return None
    return (np.sign(w) * used).astype(np.int8)


def _commonest(values: Array) -> float:
    """The value that occurs most often; 1 if there is none."""
    if not values.size:
        return 1.0
    found, counts = np.unique(values, return_counts=True)
    return float(found[counts.argmax()])


def _drift(w: Array, codes: Array, scale: Array) -> float:
    """The largest difference of ``w`` from codes * scale, relative to the scale."""
    exact = codes * (scale if scale.ndim == 0 else scale[:, None])
    return float(np.abs(w.astype(np.float64) - exact).max() / scale.max())


def is_selection(w: Array) -> bool:
    """Whether ``w`` only picks channels: ones and zeros, at most a one in each row."""
    return bool(np.isin(w, (0, 1)).all() and ((w != 0).sum(1) <= 1).all())


def levels(w: Array) -> str:
    """What is known of a matrix that is not ternary, for a message."""
    count = len(np.unique(np.abs(w)))
    return f"{count} magnitudes in place of 0 and one scale" if count <= 16 else "a dense matrix"
