"""ATen's convolutions over one to three axes, forward and transposed."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from ..ir.graph import Node
from .site import Site, accept, lowers
from .windows import each, padded, windows, windows_along

_FEW_GROUPS = 8
_MOST_ELEMENTS = 2**24  # of all windows of a volume: 64 MiB of float32


class Steps(NamedTuple):
    """How filters move over an image and how far apart their elements are, axis by axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


@lowers("aten.conv1d", "aten.conv2d", "aten.conv3d")
def convolution(
    site: Site,
    x: Node,
    w: Node,
    bias: Node | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] | str = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Node:
    axes, sizes = w.type.rank - 2, w.type.shape[2:]
    # An axis before the others is added where the call has none; it goes at the end.
    x = site.reshape(x, (1,) * (w.type.rank - x.type.rank) + x.type.shape)
    apart = each(dilation, axes)
    if isinstance(padding, str):
        spare = [(n - 1) * d for n, d in zip(sizes, apart, strict=True)]
        x = padded(site, x, [(n // 2, n - n // 2) for n in spare]) if padding == "same" else x
        padding = (0,)
    steps = Steps(each(stride, axes), each(padding, axes), apart)
    return site.reshape(_convolved(site, x, w, bias, groups, steps), site.out.shape)


@lowers("aten.convolution", "aten._convolution")
def general_convolution(
    site: Site,
    x: Node,
    w: Node,
    bias: Node | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    *_: bool,
) -> Node:
    if transposed:
        return transposed_convolution(
            site, x, w, bias, stride, padding, output_padding, groups, dilation
        )
    return convolution(site, x, w, bias, stride, padding, dilation, groups)


def _convolved(site: Site, x: Node, w: Node, bias: Node | None, groups: int, steps: Steps) -> Node:
    """x: [B, C, ...] by w: [N, C / groups, ...], in its own shape up to a reshape."""
    if 1 < groups == x.type.shape[1] == w.type.shape[0]:
        return _depthwise(site, x, w, bias, steps)
    if w.type.rank == 3:
        x, w = (site.reshape(y, (*y.type.shape[:2], 1, y.type.shape[2])) for y in (x, w))
        one = Steps((1,), (0,), (1,))
        steps = Steps(*(a + b for a, b in zip(one, steps, strict=True)))
    if w.type.rank == 5:
        return _over_three_axes(site, x, w, bias, groups, steps)
    return _over_two_axes(site, x, w, bias, groups, steps)


def _over_three_axes(
    site: Site, x: Node, w: Node, bias: Node | None, groups: int, steps: Steps
) -> Node:
    """One product, of the windows as channels; where they are too many, depth as images."""
    front, sizes = w.type.shape[:2], w.type.shape[2:]
    x = padded(site, x, [(pad, pad) for pad in steps.padding])
    batch, channels = x.type.shape[:2]
    few = site.out.size // front[0] * channels * prod(sizes) <= _MOST_ELEMENTS
    if few or sizes[1] == sizes[2] == 1:
        x = _windows_as_channels(site, x, sizes, steps)
        *_, depth, height, width = x.type.shape
        x = site.reshape(x, (batch, channels * prod(sizes), depth * height, width))
        w = site.reshape(w, (front[0], front[1] * prod(sizes), 1, 1))
        return _over_two_axes(site, x, w, bias, groups, Steps((1, 1), (0, 0), (1, 1)))
    x = windows_along(site, x, 2, sizes[0], steps.stride[0], steps.dilation[0])
    # A window's layers are channels: those of one channel stand together, as in the filters.
    x = site.move(x, 2, 1)
    count = x.type.shape[1]
    x = site.reshape(x, (batch * count, channels * sizes[0], *x.type.shape[4:]))
    w = site.reshape(w, (front[0], front[1] * sizes[0], *sizes[1:]))
    inner = Steps(steps.stride[1:], (0, 0), steps.dilation[1:])
    y = _over_two_axes(site, x, w, bias, groups, inner)
    return site.move(site.reshape(y, (batch, count, *y.type.shape[1:])), 1, 2)


def _windows_as_channels(site: Site, x: Node, sizes: Sequence[int], steps: Steps) -> Node:
    """x: [B, C, ...] as [B, C, places in a window, windows]."""
    places, spots, axis = [], [], 2
    for size, stride, apart in zip(sizes, steps.stride, steps.dilation, strict=True):
        if size > 1:
            # What each place of a window sees of all windows is itself a window.
            count = (x.type.shape[axis] - (size - 1) * apart - 1) // stride + 1
            x = windows_along(site, x, axis, count, apart, stride, size)
            places.append(axis)
            axis += 1
        else:
            x = site.slice(x, axis, 0, x.type.shape[axis], stride)
        spots.append(axis)
        axis += 1
    return site.transpose(x, (0, 1, *places, *spots))


def _over_two_axes(
    site: Site, x: Node, w: Node, bias: Node | None, groups: int, steps: Steps
) -> Node:
    dilated = steps.dilation != (1, 1)
    if groups > _FEW_GROUPS or (dilated and site.value(w) is None):
        return _by_windows(site, x, w, bias, groups, steps)
    if dilated:
        w = _dilated(site, w, steps.dilation)
    window = {"stride": steps.stride, "padding": steps.padding}
    inputs, outputs = x.type.shape[1] // groups, w.type.shape[0] // groups
    parts = []
    for group in range(groups):
        channels = site.slice(x, 1, group * inputs, (group + 1) * inputs)
        start, stop = group * outputs, (group + 1) * outputs
        own = [site.slice(y, 0, start, stop) for y in (w, bias) if y is not None]
        parts.append(site.make("conv2d", channels, *own, **window))
    return site.concat(parts, 1)


def _dilated(site: Site, w: Node, dilation: Sequence[int]) -> Node:
    """Constant weights with zeros between them."""
    value = site.value(w)
    assert value is not None, "zeros between computed weights"
    sizes = [(n - 1) * d + 1 for n, d in zip(value.shape[2:], dilation, strict=True)]
    apart = np.zeros((*value.shape[:2], *sizes), value.dtype)
    apart[:, :, :: dilation[0], :: dilation[1]] = value
    return site.constant(apart, w.type.dtype, w.name)


def _depthwise(site: Site, x: Node, w: Node, bias: Node | None, steps: Steps) -> Node:
    """One filter a channel: the sum of the shifted images, each times its weight."""
    channels, _, *sizes = w.type.shape
    x = padded(site, x, [(pad, pad) for pad in steps.padding])
    parts = [x]
    for axis, (size, stride, _, apart) in enumerate(zip(sizes, *steps, strict=True), start=2):
        reach = x.type.shape[axis] - (size - 1) * apart
        parts = [
            site.slice(part, axis, tap * apart, tap * apart + reach, stride)
            for part in parts
            for tap in range(size)
        ]
    each_channel = (channels, *(1,) * len(sizes))
    y: Node | None = None
    for tap, part in enumerate(parts):
        weight = site.reshape(_of_tap(site, w, tap), each_channel)
        part = site.make("mul", part, weight)
        y = part if y is None else site.make("add", y, part)
    assert y is not None, "a convolution without a window"
    return y if bias is None else site.make("add", y, site.reshape(bias, each_channel))


def _of_tap(site: Site, w: Node, tap: int) -> Node:
    """The weight of every channel at one place of its filter: [C]."""
    value, flat = site.value(w), (w.type.shape[0], prod(w.type.shape[1:]))
    if value is None:
        return site.select(site.reshape(w, flat), 1, tap)
    return site.constants.hold(value.reshape(flat)[:, tap], w.type.dtype, w.name, w.source)


def _by_windows(site: Site, x: Node, w: Node, bias: Node | None, groups: int, steps: Steps) -> Node:
    """One product of matrices a group, of all windows with all its filters."""
    channels, inputs, *sizes = w.type.shape
    x = padded(site, x, [(pad, pad) for pad in steps.padding])
    y = windows(site, x, sizes, steps.stride, steps.dilation)  # [B, C, rows, h, columns, w]
    batch, _, rows, height, columns, width = y.type.shape
    y = site.reshape(y, (batch, groups, inputs, rows, height, columns, width))
    y = site.transpose(y, (0, 1, 3, 5, 2, 4, 6))
    size = inputs * height * width
    y = site.reshape(y, (batch, groups, rows * columns, size))
    filters = site.reshape(w, (groups, channels // groups, size))
    y = site.swap(site.make("matmul", y, site.swap(filters, 1, 2)), 2, 3)
    y = site.reshape(y, (batch, channels, rows, columns))
    return y if bias is None else site.make("add", y, site.reshape(bias, (channels, 1, 1)))


@lowers("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def transposed_convolution(
    site: Site,
    x: Node,
    w: Node,
    bias: Node | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Node:
    """A convolution of the image with zeros between its elements, by the turned filters."""
    value = site.value(w)
    advice = "give the convolution constant weights"
    accept(value is not None, "a transposed convolution with computed weights", advice)
    filters = np.asarray(value)
    sizes, axes = filters.shape[2:], filters.ndim - 2
    x = site.reshape(x, (1,) * (w.type.rank - x.type.rank) + x.type.shape)
    strides, apart = each(stride, axes), each(dilation, axes)
    pads, spare = each(padding, axes), each(output_padding, axes)
    tiles = strides == sizes and not any((*pads, *spare)) and set(apart) == {1}
    if tiles and groups == 1:
        return _without_overlap(site, x, w, filters, bias)
    ends = [d * (n - 1) - p for d, n, p in zip(apart, sizes, pads, strict=True)]
    x = _spread(site, x, strides)
    x = padded(site, x, [(end, end + more) for end, more in zip(ends, spare, strict=True)])
    turned = filters.reshape(groups, -1, *filters.shape[1:]).swapaxes(1, 2)
    turned = turned.reshape(-1, filters.shape[0] // groups, *sizes)
    turned = np.flip(turned, tuple(range(2, turned.ndim)))
    steps = Steps((1,) * axes, (0,) * axes, apart)
    y = _convolved(site, x, site.constant(turned, w.type.dtype, w.name), bias, groups, steps)
    return site.reshape(y, site.out.shape)


def _without_overlap(site: Site, x: Node, w: Node, filters: np.ndarray, bias: Node | None) -> Node:
    """Every pixel becomes a patch of its own: one product, then the patches laid out."""
    inputs, outputs, *sizes = filters.shape
    batch, _, *image = x.type.shape
    pointwise = filters.reshape(inputs, -1).T[..., None, None]
    y = site.reshape(x, (batch, inputs, prod(image[:-1]), image[-1]))
    y = site.make("conv2d", y, site.constant(pointwise, w.type.dtype, w.name))
    y = site.reshape(y, (batch, outputs, *sizes, *image))
    axes = len(sizes)
    apart = [place for axis in range(2, 2 + axes) for place in (axis + axes, axis)]
    y = site.reshape(site.transpose(y, (0, 1, *apart)), site.out.shape)
    return y if bias is None else site.make("add", y, site.reshape(bias, (outputs, *(1,) * axes)))


def _spread(site: Site, x: Node, strides: Sequence[int]) -> Node:
    """``x`` [B, C, ...] with zeros between its elements: ``strides`` apart."""
    for axis, step in enumerate(strides, start=2):
        if step == 1:
            continue
        shape = x.type.shape
        before, size, behind = shape[:axis], shape[axis], shape[axis + 1 :]
        x = site.reshape(x, (*before, size, 1, *behind))
        zeros = site.constant(0, x.type.dtype)
        gaps = site.broadcast(zeros, (*before, size, step - 1, *behind))
        x = site.reshape(site.concat([x, gaps], axis + 1), (*before, size * step, *behind))
        x = site.slice(x, axis, 0, (size - 1) * step + 1)
    return x
