"""``panelP``: a matrix f32[N, K] as panels of P output channels, k-major within a panel.

Stored as f32[ceil(N / P), K, P], the last panel zero-padded. A kernel reads P weights of one k at
once, and the whole panel as one forward stream; a tile may span several panels.
"""

from __future__ import annotations

import numpy as np

from .layout import Array, Layout, Sizes
from .record import Tensor


def _storage(sizes: Sizes, tensor: Tensor) -> Tensor:
    (panel,) = sizes
    outputs, depth = tensor.shape
    return Tensor(tensor.dtype, (-(-outputs // panel), depth, panel))


def _pack(sizes: Sizes, array: Array) -> Array:
    (panel,) = sizes
    outputs, depth = array.shape
    panels = -(-outputs // panel)
    padded = np.zeros((panels * panel, depth), array.dtype)
    padded[:outputs] = array
    return padded.reshape(panels, panel, depth).transpose(0, 2, 1)


def _unpack(sizes: Sizes, packed: Array, shape: tuple[int, ...]) -> Array:
    outputs, depth = shape
    return packed.transpose(0, 2, 1).reshape(-1, depth)[:outputs].copy()


LAYOUT = Layout(_storage, _pack, _unpack)
