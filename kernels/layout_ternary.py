"""``ternaryOxD``: ternary[N, K] as 2-bit codes (weight + 1), a step of O outputs x 4 D k at a time.

Stored as u8[ceil(N / O), ceil(K / 4 D), O * D]. Byte ``o * D + j`` of a step holds in bits
2p+1..2p (plane p = 0..3) the code of output ``o`` for ``k = p * D + j`` of that step: what one
vector of ``Lanes`` reads at once. Padding holds code 1, so it weighs 0.
"""

from __future__ import annotations

import numpy as np

from .layout import Array, Layout, Sizes
from .record import Tensor

PLANES = 4
# Four codes of weight 0.
ZERO_BYTE = 0b01010101


def steps_of(depth: int, group: int) -> int:
    """How many steps hold ``depth`` values of k, ``group`` of them a plane."""
    return -(-depth // (PLANES * group))


def checked(array: Array) -> Array:
    """``array``, which are ternary weights. Raises ValueError for any other number."""
    wrong = array[(array < -1) | (array > 1)]
    if wrong.size:
        raise ValueError(f"ternary weights are -1, 0 or 1, found {wrong.flat[0]}")
    return array


def _storage(sizes: Sizes, tensor: Tensor) -> Tensor:
    vector, group = sizes
    outputs, depth = tensor.shape
    return Tensor("u8", (-(-outputs // vector), steps_of(depth, group), vector * group))


def _pack(sizes: Sizes, array: Array) -> Array:
    vector, group = sizes
    outputs, depth = array.shape
    strips, steps = -(-outputs // vector), steps_of(depth, group)
    codes = np.ones((strips * vector, steps * PLANES * group), np.uint8)
    codes[:outputs, :depth] = checked(array) + 1
    # [strip, output, step, plane, k of a plane] -> [strip, step, output, k of a plane, plane]
    planes = codes.reshape(strips, vector, steps, PLANES, group).transpose(0, 2, 1, 4, 3)
    packed: Array = np.bitwise_or.reduce(planes << np.arange(0, 8, 2, dtype=np.uint8), axis=-1)
    return packed.reshape(strips, steps, vector * group)


def _unpack(sizes: Sizes, packed: Array, shape: tuple[int, ...]) -> Array:
    vector, group = sizes
    outputs, depth = shape
    strips, steps, _ = packed.shape
    parts = packed.reshape(strips, steps, vector, group, 1)
    codes = (parts >> np.arange(0, 8, 2, dtype=np.uint8)) & 3
    rows = codes.transpose(0, 2, 1, 4, 3).reshape(strips * vector, steps * PLANES * group)
    return rows[:outputs, :depth].astype(np.int8) - np.int8(1)


LAYOUT = Layout(_storage, _pack, _unpack)
