"""``rotationVxL``: blocks f32[E, groups, b, b] as b vectors of coefficients for every V channels.

``L`` is the `lanes` of the op `rotate`: member i of group g is channel
(g // L) * b * L + i * L + g % L. Stored as f32[E, ceil(groups * b / V), b, V]: coefficient j of
channel c, at [c // V, j, c % V], is what c takes of member j of its group. Padding holds 0.
"""

from __future__ import annotations

import numpy as np

from .layout import Array, Layout, Sizes
from .record import Tensor


def places(groups: int, b: int, lanes: int) -> Array:
    """The channel of member i of group g: i64[groups, b]."""
    group = np.arange(groups)[:, None]
    return (group // lanes) * b * lanes + np.arange(b) * lanes + group % lanes


def _storage(sizes: Sizes, tensor: Tensor) -> Tensor:
    width, _ = sizes
    experts, groups, b, _ = tensor.shape
    return Tensor(tensor.dtype, (experts, -(-groups * b // width), b, width))


def _pack(sizes: Sizes, array: Array) -> Array:
    width, lanes = sizes
    experts, groups, b, _ = array.shape
    vectors = -(-groups * b // width)
    rows = np.zeros((experts, vectors * width, b), array.dtype)
    rows[:, places(groups, b, lanes)] = array
    return rows.reshape(experts, vectors, width, b).swapaxes(2, 3)


def _unpack(sizes: Sizes, packed: Array, shape: tuple[int, ...]) -> Array:
    _, lanes = sizes
    experts, groups, b, _ = shape
    rows = packed.swapaxes(2, 3).reshape(experts, -1, b)
    return np.ascontiguousarray(rows[:, places(groups, b, lanes)])


LAYOUT = Layout(_storage, _pack, _unpack)
