"""``crumbsFxKxO``: ternary[N, K] as 2-bit codes, the four columns of a group in one byte.

Stored as u8[N padded to F, (K padded to K) / 4]. Column 4 g + p of a row is the code at bits
7-2p..6-2p of byte g: sign << 1 | magnitude, so that the byte shifted left by 2p and cut to its two
highest bits is +-2.0 in the upper byte of a float, and +-64 as int8. Padding is 0.

O is the order of rows: 0 as they are; 1 in ``fragment`` order, where the four members of a group
of rows lie at 2i, 2i+1, 2i+8 and 2i+9 of 16 rows, which one thread holds of a product's result.
"""

from __future__ import annotations

import numpy as np

from .layout import Array, Layout, Sizes
from .layout_ternary import checked
from .record import Tensor

GROUP = 4
# Rows that fragment order moves among themselves.
FRAGMENT = 16
# How far the code of each member of a group is shifted.
SHIFTS = np.array([6, 4, 2, 0], np.uint8)


def fragment_order(rows: int) -> Array:
    """The row that lies at each of ``rows`` places in fragment order: i64[rows]."""
    place = np.arange(rows)
    high, group, low = place % 16 // 8, place % 8 // 2, place % 2
    return place // 16 * 16 + group * 4 + high * 2 + low


def _order(sizes: Sizes, rows: int) -> Array:
    multiple, columns, order = sizes
    if order not in (0, 1) or columns % GROUP or (order and multiple % FRAGMENT):
        raise ValueError(
            f"no layout 'crumbs{multiple}x{columns}x{order}': want columns in multiples of "
            f"{GROUP}, and order 0, or order 1 with rows in multiples of {FRAGMENT}"
        )
    return fragment_order(rows) if order else np.arange(rows)


def _padded(sizes: Sizes, shape: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = shape
    return -(-rows // sizes[0]) * sizes[0], -(-columns // sizes[1]) * sizes[1]


def _storage(sizes: Sizes, tensor: Tensor) -> Tensor:
    rows, columns = _padded(sizes, tensor.shape)
    return Tensor("u8", (rows, columns // GROUP))


def _pack(sizes: Sizes, array: Array) -> Array:
    rows, columns = _padded(sizes, array.shape)
    codes = np.zeros((rows, columns), np.uint8)
    weights = checked(array)
    codes[: array.shape[0], : array.shape[1]] = (weights < 0) << 1 | (weights != 0)
    groups = codes[_order(sizes, rows)].reshape(rows, -1, GROUP)
    packed: Array = np.bitwise_or.reduce(groups << SHIFTS, axis=-1)
    return packed


def _unpack(sizes: Sizes, packed: Array, shape: tuple[int, ...]) -> Array:
    codes = (packed[..., None] >> SHIFTS & 3).reshape(packed.shape[0], -1)
    rows = np.empty_like(codes)
    rows[_order(sizes, len(codes))] = codes
    kept = rows[: shape[0], : shape[1]].astype(np.int8)
    return (kept & 1) * (1 - (kept & 2))


LAYOUT = Layout(_storage, _pack, _unpack)
