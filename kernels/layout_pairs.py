"""``pairsO``: ternary[N, K] as numbers of pairs of weights, four columns a byte.

Stored as u8[ceil(N / O), ceil(K / 4), O]. Byte ``o`` of a group of columns 4g .. 4g + 3 is of
output ``o``: its low nibble is the number of the weights of the first two columns, its high nibble
that of the others. The number of weights a, b is 3 * (a + 1) + (b + 1): where a table holds
a * x + b * y for two activations x, y. Padding holds number 4, so it weighs 0.
"""

from __future__ import annotations

import numpy as np

from .layout import Array, Layout, Sizes
from .layout_ternary import checked
from .record import Tensor

# Columns of a byte, of a nibble, and numbers of their weights.
GROUP = 4
NUMBERS = 9


def weights_of(number: int) -> tuple[int, int]:
    """The two weights that a number stands for."""
    first, second = divmod(number, 3)
    return first - 1, second - 1


def groups_of(depth: int) -> int:
    """How many groups of columns hold ``depth`` of them."""
    return -(-depth // GROUP)


def _storage(sizes: Sizes, tensor: Tensor) -> Tensor:
    (strip,) = sizes
    outputs, depth = tensor.shape
    return Tensor("u8", (-(-outputs // strip), groups_of(depth), strip))


def _pack(sizes: Sizes, array: Array) -> Array:
    (strip,) = sizes
    outputs, depth = array.shape
    strips, groups = -(-outputs // strip), groups_of(depth)
    codes = np.ones((strips * strip, groups * GROUP), np.uint8)
    codes[:outputs, :depth] = checked(array) + 1
    # [strip, output, group, pair, column of the pair]
    columns = codes.reshape(strips, strip, groups, 2, 2)
    numbers = 3 * columns[..., 0] + columns[..., 1]
    packed: Array = numbers[..., 0] | numbers[..., 1] << 4
    return packed.transpose(0, 2, 1)


def _unpack(sizes: Sizes, packed: Array, shape: tuple[int, ...]) -> Array:
    outputs, depth = shape
    strips, groups, strip = packed.shape
    numbers = np.stack([packed & 15, packed >> 4], axis=-1)
    columns = np.stack([numbers // 3, numbers % 3], axis=-1)
    rows = columns.transpose(0, 2, 1, 3, 4).reshape(strips * strip, groups * GROUP)
    return rows[:outputs, :depth].astype(np.int8) - np.int8(1)


LAYOUT = Layout(_storage, _pack, _unpack)
