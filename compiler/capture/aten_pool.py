"""ATen's poolings and resizings of rows, images and volumes, and images as their windows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch

from ..ir.graph import Node
from ..ir.types import FLOATS, STORAGE
from .aten_shape import reorder
from .site import Site, lowers
from .windows import each, padded, windows, windows_along


def _axes(site: Site) -> int:
    """Over how many axes an operator pools: the digit in its name."""
    return int(next(letter for letter in site.operator if letter.isdigit()))


def _reaching(
    site: Site,
    x: Node,
    fill: float,
    sizes: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    outer: Sequence[int],
) -> Node:
    """``x`` padded, behind as far as the last of ``outer`` windows reaches (ceil_mode)."""
    sides: list[tuple[int, int]] = []
    inner = x.type.shape[-len(sizes) :]
    for n, size, step, pad, count in zip(inner, sizes, strides, padding, outer, strict=True):
        reach = (count - 1) * step + size - n - pad
        sides.append((pad, max(pad, reach)))
    return padded(site, x, sides, fill)


@lowers(
    "aten.max_pool1d",
    "aten.max_pool2d",
    "aten.max_pool3d",
    "aten.max_pool2d_with_indices",
    "aten.max_pool3d_with_indices",
)
def max_pool(
    site: Site,
    x: Node,
    size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:
    several, behind = isinstance(site.out, tuple), _axes(site)
    outer = (site.out[0] if several else site.out).shape[-behind:]
    sizes, apart = each(size, behind), each(dilation, behind)
    strides = each(stride, behind, sizes)
    reach = [(n - 1) * d + 1 for n, d in zip(sizes, apart, strict=True)]
    dtype = x.type.dtype
    lowest = -np.inf if dtype in FLOATS else int(np.iinfo(STORAGE[dtype]).min)
    x = _reaching(site, x, lowest, reach, strides, each(padding, behind), outer)
    y = _reduced(site, "max", x, outer, (sizes, strides, apart))
    return (y, None) if several else y


def _reduced(
    site: Site, op: str, x: Node, outer: Sequence[int], steps: Sequence[Sequence[int]]
) -> Node:
    """The sum or maximum of each window, axis by axis: ``steps`` are sizes, strides, dilations."""
    first = x.type.rank - len(outer)
    for axis, (count, size, stride, apart) in enumerate(zip(outer, *steps, strict=True), first):
        if size == stride == 1:
            continue
        x = windows_along(site, x, axis, size, stride, apart, count)
        x = site.make(op, x, axes=(axis + 1,))
    return x


@lowers("aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d")
def average_pool(
    site: Site,
    x: Node,
    size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_padding: bool = True,
    divisor: int | None = None,
) -> Node:
    behind = _axes(site)
    sizes, pads, outer = each(size, behind), each(padding, behind), site.out.shape[-behind:]
    strides = each(stride, behind, sizes)
    sides = zip(x.type.shape[-behind:], sizes, strides, pads, outer, strict=True)
    counts = [_counted(side, count_padding) for side in sides]
    x = _reaching(site, x, 0, sizes, strides, pads, outer)
    y = _reduced(site, "sum", x, outer, (sizes, strides, (1,) * behind))
    every = reduce(np.multiply.outer, counts) if divisor is None else np.array(divisor)
    every = every.flat[0] if every.min() == every.max() else every
    return site.make("div", y, site.constant(every, x.type.dtype))


def _counted(side: tuple[int, int, int, int, int], padding: bool) -> np.ndarray:
    """How many elements of each window are counted along one axis."""
    size, window, step, pad, count = side
    starts = np.arange(count) * step - pad
    low, high = (-pad, size + pad) if padding else (0, size)
    ends = np.minimum(starts + window, size + pad)
    return np.minimum(ends, high) - np.maximum(starts, low)


def _adaptive(size: int, count: int) -> list[range]:
    """The elements that each of ``count`` adaptive windows covers."""
    return [range(i * size // count, -((i + 1) * size // -count)) for i in range(count)]


@lowers(
    "aten.adaptive_avg_pool1d",
    "aten.adaptive_avg_pool2d",
    "aten.adaptive_avg_pool3d",
    "aten._adaptive_avg_pool2d",
    "aten._adaptive_avg_pool3d",
)
def adaptive_average_pool(site: Site, x: Node, size: Any) -> Node:
    behind = _axes(site)
    rank, outer = x.type.rank, site.out.shape[-behind:]
    if all(n % m == 0 for n, m in zip(x.type.shape[-behind:], outer, strict=True)):
        front, inner = x.type.shape[:-behind], x.type.shape[-behind:]
        apart = [n for i, m in zip(inner, outer, strict=True) for n in (m, i // m)]
        y = site.reshape(x, (*front, *apart))
        axes = tuple(len(front) + 1 + 2 * at for at in range(behind))
        return site.make("mean", y, axes=axes)
    for axis, count in zip(range(rank - behind, rank), outer, strict=True):
        matrix = np.zeros((count, x.type.shape[axis]))
        for row, window in zip(matrix, _adaptive(x.type.shape[axis], count), strict=True):
            row[window] = 1 / len(window)
        x = _mixed(site, x, axis, matrix)
    return x


@lowers("aten.adaptive_max_pool1d", "aten.adaptive_max_pool2d", "aten.adaptive_max_pool3d")
def adaptive_max_pool(site: Site, x: Node, size: Any) -> tuple[Node, None]:
    behind = _axes(site)
    rank, outer = x.type.rank, site.out[0].shape[-behind:]
    for axis, count in zip(range(rank - behind, rank), outer, strict=True):
        parts = _adaptive(x.type.shape[axis], count)
        most = max(map(len, parts))
        # A shorter window repeats its last element, which changes no maximum.
        order = np.array([[part[min(i, len(part) - 1)] for i in range(most)] for part in parts])
        x = site.make("max", reorder(site, x, axis, order), axes=(axis + 1,))
    return x, None


@lowers("aten.im2col")
def im2col(site: Site, x: Node, size: Any, dilation: Any, padding: Any, stride: Any) -> Node:
    x = padded(site, x, [(pad, pad) for pad in each(padding, 2)])
    steps = (each(values, 2) for values in (size, stride, dilation))
    y = windows(site, x, *steps)  # [B, C, rows, h, columns, w]
    *front, rows, h, columns, w = range(y.type.rank)
    return site.reshape(site.transpose(y, (*front, h, w, rows, columns)), site.out.shape)


def _mixed(site: Site, x: Node, axis: int, matrix: np.ndarray) -> Node:
    """The elements of an axis replaced by sums of them, a row of ``matrix`` each."""
    weights = site.constant(matrix, x.type.dtype, f"{site.name}.weights")
    return site.move(site.make("linear", site.move(x, axis, -1), weights), -1, axis)


def _scales(site: Site, axes: int, scales: Sequence[Any]) -> list[float | None]:
    """The factor of each axis, where torch resizes by it and not by the quotient of the sizes."""
    given: Any = scales
    if site.target.endswith(".vec"):
        (given,) = scales or (None,)
    return list(given) if given else [None] * axes


def _resized(site: Site, image: torch.Tensor, size: int, options: Sequence[Any]) -> np.ndarray:
    """What torch makes of the last axis of ``image`` [n, m], as this call resizes."""
    *settings, scale = options
    function = getattr(torch.ops.aten, site.operator).default
    outer = site.out.rank - 3  # axes before the last that are resized: they stay as they are
    rows = image.reshape(1, image.shape[0], *(1,) * outer, image.shape[1])
    y = function(rows, [1] * outer + [size], *settings, *[None] * outer, scale)
    return np.asarray(y.reshape(image.shape[0], size).numpy())


@lowers(
    "aten._upsample_bicubic2d_aa",
    "aten._upsample_bilinear2d_aa",
    "aten.upsample_bicubic2d",
    "aten.upsample_bilinear2d",
    "aten.upsample_linear1d",
    "aten.upsample_trilinear3d",
)
def upsample_by_weights(site: Site, x: Node, _: Any, align_corners: bool, *scales: Any) -> Node:
    behind = x.type.rank - 2
    for at, scale in enumerate(_scales(site, behind, scales)):
        axis = 2 + at
        image = torch.eye(x.type.shape[axis])
        matrix = _resized(site, image, site.out.shape[axis], (align_corners, scale)).T
        x = _mixed(site, x, axis, matrix)
    return x


@lowers(
    "aten._upsample_nearest_exact1d",
    "aten._upsample_nearest_exact2d",
    "aten._upsample_nearest_exact3d",
    "aten.upsample_nearest1d",
    "aten.upsample_nearest2d",
    "aten.upsample_nearest3d",
)
def upsample_nearest(site: Site, x: Node, _: Any, *scales: Any) -> Node:
    behind = x.type.rank - 2
    for at, scale in enumerate(_scales(site, behind, scales)):
        axis = 2 + at
        numbers = torch.arange(x.type.shape[axis], dtype=torch.float32)[None]
        order = _resized(site, numbers, site.out.shape[axis], (scale,))[0]
        x = reorder(site, x, axis, order.astype(np.int64))
    return x
