"""What convolutions and poolings share: images padded, and as their windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir.graph import Node
from .aten_shape import constant_pad, reorder
from .site import Site


def each(values: Any, axes: int, default: Sequence[int] = ()) -> tuple[int, ...]:
    """A number for each axis: torch takes one for all of them too, or none for the default."""
    if values is None or values == [] or values == ():
        assert len(default) == axes, "a window without a size"
        return tuple(default)
    values = (values,) if isinstance(values, int) else tuple(values)
    return values * axes if len(values) == 1 else values


def padded(site: Site, x: Node, sides: Sequence[tuple[int, int]], fill: float = 0) -> Node:
    """``x`` with ``sides`` (before, behind) added to its last axes, or cut off where negative."""
    return constant_pad(site, x, [width for pair in reversed(sides) for width in pair], fill)


def windows_along(
    site: Site, x: Node, axis: int, size: int, stride: int, apart: int, count: int | None = None
) -> Node:
    """``x`` with an axis replaced by two: its windows, all or the first ``count``, and within."""
    reach = (size - 1) * apart + 1
    count = (x.type.shape[axis] - reach) // stride + 1 if count is None else count
    tiles = apart == 1 or size == 1
    if tiles and (size == stride or count == 1):
        shape = x.type.shape
        x = site.slice(x, axis, 0, count * size)
        return site.reshape(x, (*shape[:axis], count, size, *shape[axis + 1 :]))
    starts = stride * np.arange(count)
    return reorder(site, x, axis, starts[:, None] + apart * np.arange(size))


def windows(
    site: Site, x: Node, sizes: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Node:
    """x: [..., H, W] as [..., rows, h, columns, w]: every window; any number of axes."""
    first = x.type.rank - len(sizes)
    for at, (size, stride, apart) in enumerate(zip(sizes, strides, dilation, strict=True)):
        x = windows_along(site, x, first + 2 * at, size, stride, apart)
    return x
