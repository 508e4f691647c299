"""``tableTxG``: ternary[N, K] as bytes that name the signed sum of T columns, G bytes a block.

Stored as u8[ceil(K / (T * G)), N, G]. Byte ``g`` of block ``b`` of an output holds, in base 3 and
the first column lowest, the codes (weight + 1) of the T columns from ``(b * G + g) * T``. Padding
holds code 1, so it weighs 0.
"""

from __future__ import annotations

import numpy as np

from .layout import Array, Layout, Sizes
from .record import Tensor

# 3**5 codes are what a byte can name.
LARGEST_TRITS = 5


def columns_of(trits: int, groups: int) -> int:
    """How many columns a block holds."""
    if not 0 < trits <= LARGEST_TRITS:
        raise ValueError(f"{trits} columns a byte, of 1 to {LARGEST_TRITS} possible")
    return trits * groups


def pack_pair(rows: Array, trits: int, groups: int) -> Array:
    """Two rows int8[2, K] as int32[blocks * columns]: row 0 + 65536 * row 1, zeros behind."""
    depth, columns = rows.shape[1], columns_of(trits, groups)
    pair = np.zeros(-(-depth // columns) * columns, np.int32)
    low, high = rows.astype(np.int32)
    pair[:depth] = low + 65536 * high
    return pair


def _powers(trits: int) -> Array:
    powers: Array = (3 ** np.arange(trits)).astype(np.uint8)
    return powers


def _storage(sizes: Sizes, tensor: Tensor) -> Tensor:
    trits, groups = sizes
    outputs, depth = tensor.shape
    return Tensor("u8", (-(-depth // columns_of(trits, groups)), outputs, groups))


def _pack(sizes: Sizes, array: Array) -> Array:
    trits, groups = sizes
    outputs, depth = array.shape
    wrong = array[(array < -1) | (array > 1)]
    if wrong.size:
        raise ValueError(f"ternary weights are -1, 0 or 1, found {wrong.flat[0]}")
    columns = columns_of(trits, groups)
    blocks = -(-depth // columns)
    codes = np.ones((outputs, blocks * columns), np.uint8)
    codes[:, :depth] = array + 1
    # [output, block, group, column of a byte] -> [block, output, group]
    bytes_ = codes.reshape(outputs, blocks, groups, trits) @ _powers(trits)
    return bytes_.transpose(1, 0, 2)


def _unpack(sizes: Sizes, packed: Array, shape: tuple[int, ...]) -> Array:
    trits, _ = sizes
    outputs, depth = shape
    bytes_ = packed.transpose(1, 0, 2)[..., np.newaxis]
    codes = (bytes_ // _powers(trits) % 3).reshape(outputs, -1)[:, :depth]
    return codes.astype(np.int8) - np.int8(1)


LAYOUT = Layout(_storage, _pack, _unpack)
