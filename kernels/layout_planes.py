"""``planesPxTxG``: i8[N, K] of P balanced-ternary digits each, as ``tableTxG`` of the digits.

w = d0 + 3 d1 + 9 d2 + .. with digits of -1, 0 and 1. Digit ``p`` of output ``n`` is output
``n * P + p`` of the table layout.
"""

from __future__ import annotations

import numpy as np

from . import layout_table
from .integer_numbers import largest_of
from .layout import Array, Layout, Sizes
from .record import Tensor


def digits_of(weights: Array, planes: int) -> Array:
    """int8[..., P]: the balanced-ternary digits of whole numbers, the lowest first.

    Raises ValueError for a number that has more.
    """
    rest = weights.astype(np.int64)
    most = int(np.abs(rest).max(initial=0))
    if most > largest_of(planes):
        raise ValueError(f"{planes} planes hold up to {largest_of(planes)}, found {most}")
    digits = np.empty((*rest.shape, planes), np.int8)
    for plane in range(planes):
        digits[..., plane] = (rest + 1) % 3 - 1
        rest = (rest - digits[..., plane]) // 3
    return digits


def _stacked(sizes: Sizes, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[0] * sizes[0], shape[1]


def _storage(sizes: Sizes, tensor: Tensor) -> Tensor:
    digits = Tensor("ternary", _stacked(sizes, tensor.shape))
    return layout_table.LAYOUT.storage(sizes[1:], digits)


def _pack(sizes: Sizes, array: Array) -> Array:
    digits = np.moveaxis(digits_of(array, sizes[0]), -1, 1)  # [N, P, K]
    return layout_table.LAYOUT.pack(sizes[1:], digits.reshape(_stacked(sizes, array.shape)))


def _unpack(sizes: Sizes, packed: Array, shape: tuple[int, ...]) -> Array:
    planes = sizes[0]
    digits = layout_table.LAYOUT.unpack(sizes[1:], packed, _stacked(sizes, shape))
    weights = digits.reshape(shape[0], planes, shape[1]).astype(np.int64)
    return np.einsum("npk,p->nk", weights, 3 ** np.arange(planes)).astype(np.int8)


LAYOUT = Layout(_storage, _pack, _unpack)
