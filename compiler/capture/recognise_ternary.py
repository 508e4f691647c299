"""Products with constant matrices, and whether such a matrix is ternary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir.graph import Node
from .recognise_probe import Probe

Array = np.ndarray


@dataclass(frozen=True)
class Product:
    """x @ w.T + bias: the ``node``, its operand x, and w [N, K]."""

    node: Node
    x: Node
    w: Array
    bias: Array | None


@dataclass(frozen=True)
class Ternary:
    """w = codes * scale, exactly: codes -1, 0, 1 of [N, K]; scale one number, or one a row."""

    codes: Array
    scale: Array

    def __str__(self) -> str:
        kind = "one scale" if self.scale.ndim == 0 else "a scale a row"
        zeros = 100 * float(np.mean(self.codes == 0))
        return f"ternary {list(self.codes.shape)}, {kind}, {zeros:.0f} % zeros"


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
    """``w`` [N, K] as exact ternary codes times one scale, else times one scale a row."""
    size = np.abs(w)
    largest = size.max(axis=1, initial=0)  # [N]
    if not largest.any() or not np.isfinite(size).all():
        return None
    codes = np.sign(w).astype(np.int8)
    top = largest.max()
    if ((size == 0) | (size == top)).all():
        return Ternary(codes, np.asarray(top, w.dtype))
    if w.shape[1] > 1 and ((size == 0) | (size == largest[:, None])).all():
        return Ternary(codes, np.where(largest > 0, largest, top).astype(w.dtype))
    return None


def is_selection(w: Array) -> bool:
    """Whether ``w`` only picks channels: ones and zeros, at most a one in each row."""
    return bool(np.isin(w, (0, 1)).all() and ((w != 0).sum(1) <= 1).all())


def levels(w: Array) -> str:
    """What is known of a matrix that is not ternary, for a message."""
    count = len(np.unique(np.abs(w)))
    return f"{count} magnitudes in place of 0 and one scale" if count <= 16 else "a dense matrix"
