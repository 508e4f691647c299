"""Products with constant matrices, and whether such a matrix is ternary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir.graph import Node
from .recognise_probe import Probe

Array = np.ndarray
NEAR = 4e-6


@dataclass(frozen=True)
class Product:
    """x @ w.T + bias: the ``node``, its operand x, and w [N, K]."""

    node: Node
    x: Node
    w: Array
    bias: Array | None


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

    def __str__(self) -> str:
        kind = "one scale" if self.scale.ndim == 0 else "a scale a row"
        zeros = 100 * float(np.mean(self.codes == 0))
        words = f"ternary {list(self.codes.shape)}, {kind}, {zeros:.0f} % zeros"
        return words + (f", straight-through rounding {self.drift:.0e}" if self.drift else "")


def product_of(probe: Probe, node: Node) -> Product | None:
    """``node`` as a product of rows with one constant matrix."""
    if node.op == "linear" and node["activation"] == "none":
        x, w, *bias = node.operands
        if x.op != "constant" and all(part.op == "constant" for part in (w, *bias)):
            return Product(node, x, _value(probe, w), _value(probe, bias[0]) if bias else None)
    if node.op == "matmul":
        x, w = node.operands
        if w.op == "constant" and x.op != "constant" and w.type.rank == 2:
            return Product(node, x, _value(probe, w).T, None)
    return None


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
