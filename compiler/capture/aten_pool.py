"""ATen's poolings and resizings of images, and images as their windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..ir.graph import Node
from ..ir.types import FLOATS, STORAGE
from .aten_conv import windows
from .aten_shape import constant_pad, reorder
from .site import Site, lowers


def _two(values: Any, default: Sequence[int] | None = None) -> list[int]:
    if values is None or values == [] or values == ():
        assert default is not None, "a window without a size"
        return list(default)
    values = [values] if isinstance(values, int) else list(values)
    return values * 2 if len(values) == 1 else values


def _padded(
    site: Site,
    x: Node,
    fill: float,
    sizes: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    outer: Sequence[int],
) -> Node:
    """``x`` padded, behind as far as the last of ``outer`` windows reaches (ceil_mode)."""
    widths: list[int] = []
    inner = x.type.shape[-2:]
    for n, size, step, pad, count in zip(inner, sizes, strides, padding, outer, strict=True):
        reach = (count - 1) * step + size - n - pad
        widths = [pad, max(pad, reach), *widths]
    return constant_pad(site, x, widths, fill)


@lowers("aten.max_pool2d", "aten.max_pool2d_with_indices")
def max_pool(
    site: Site,
    x: Node,
    size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:
    several = isinstance(site.out, tuple)
    outer = (site.out[0] if several else site.out).shape[-2:]
    sizes, apart = _two(size), _two(dilation)
    strides = _two(stride, sizes)
    reach = [(n - 1) * d + 1 for n, d in zip(sizes, apart, strict=True)]
    dtype = x.type.dtype
    lowest = -np.inf if dtype in FLOATS else int(np.iinfo(STORAGE[dtype]).min)
    x = _padded(site, x, lowest, reach, strides, _two(padding), outer)
    y = windows(site, x, sizes, strides, apart)
    y = site.make("max", y, axes=(y.type.rank - 3, y.type.rank - 1))
    # More windows may fit than torch takes.
    for axis in (-2, -1):
        y = site.slice(y, y.type.rank + axis, 0, outer[axis])
    return (y, None) if several else y


@lowers("aten.avg_pool2d")
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
    sizes, pads, outer = _two(size), _two(padding), site.out.shape[-2:]
    strides = _two(stride, sizes)
    sides = zip(x.type.shape[-2:], sizes, strides, pads, outer, strict=True)
    counts = [_counted(side, count_padding) for side in sides]
    x = _padded(site, x, 0, sizes, strides, pads, outer)
    y = windows(site, x, sizes, strides, (1, 1))
    y = site.make("sum", y, axes=(y.type.rank - 3, y.type.rank - 1))
    for axis in (-2, -1):
        y = site.slice(y, y.type.rank + axis, 0, outer[axis])
    every = np.outer(*counts) if divisor is None else np.array(divisor)
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


@lowers("aten.adaptive_avg_pool2d", "aten._adaptive_avg_pool2d", "aten.adaptive_avg_pool1d")
def adaptive_average_pool(site: Site, x: Node, size: Any) -> Node:
    behind = 1 if site.operator.endswith("1d") else 2
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


@lowers("aten.adaptive_max_pool1d", "aten.adaptive_max_pool2d")
def adaptive_max_pool(site: Site, x: Node, size: Any) -> tuple[Node, None]:
    behind = 1 if site.operator.endswith("1d") else 2
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
    high, wide = _two(padding)
    x = constant_pad(site, x, (wide, wide, high, high))
    y = windows(site, x, _two(size), _two(stride), _two(dilation))  # [B, C, rows, h, columns, w]
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
    if site.operator.rstrip("a_").endswith("1d"):
        return np.asarray(function(image[None], [size], *settings, scale)[0].numpy())
    shape = [image.shape[0], size]
    return np.asarray(function(image[None, None], shape, *settings, None, scale)[0, 0].numpy())


@lowers(
    "aten._upsample_bicubic2d_aa",
    "aten._upsample_bilinear2d_aa",
    "aten.upsample_bicubic2d",
    "aten.upsample_bilinear2d",
    "aten.upsample_linear1d",
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
    "aten.upsample_nearest1d",
    "aten.upsample_nearest2d",
)
def upsample_nearest(site: Site, x: Node, _: Any, *scales: Any) -> Node:
    behind = x.type.rank - 2
    for at, scale in enumerate(_scales(site, behind, scales)):
        axis = 2 + at
        numbers = torch.arange(x.type.shape[axis], dtype=torch.float32)[None]
        order = _resized(site, numbers, site.out.shape[axis], (scale,))[0]
        x = reorder(site, x, axis, order.astype(np.int64))
    return x
