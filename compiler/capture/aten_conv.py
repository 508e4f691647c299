"""ATen's convolutions over one or two axes, forward and transposed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir.graph import Node
from .aten_shape import constant_pad, reorder
from .site import Refused, Site, accept, lowers

_FEW_GROUPS = 8


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
    rank = w.type.rank - 2
    if rank == 3:
        return _over_three_axes(site, x, w, bias, [stride, padding, dilation], groups)
    # An axis before the others is added where the call has none; it goes at the end.
    x = site.reshape(x, (1,) * (w.type.rank - x.type.rank) + x.type.shape)
    if rank == 1:
        x = site.reshape(x, (*x.type.shape[:2], 1, x.type.shape[2]))
        w = site.reshape(w, (*w.type.shape[:2], 1, w.type.shape[2]))
    strides, dilations = _pair(stride, rank, 1), _pair(dilation, rank, 1)
    w = _dilated(site, w, dilations)
    if isinstance(padding, str):
        x = _padded_to_same(site, x, w) if padding == "same" else x
        padding = (0,)
    pads = _pair(padding, rank, 0)
    y = _grouped(site, x, w, bias, groups, stride=strides, padding=pads)
    return site.reshape(y, site.out.shape)


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


def _over_three_axes(
    site: Site, x: Node, w: Node, bias: Node | None, options: list[Any], groups: int
) -> Node:
    """The sum, over the layers of the filters, of their convolutions with every image."""
    same = isinstance(options[1], str)
    accept(not same, "a convolution over 3 axes padded by name", "pad by numbers")
    (stride, *strides), (pad, *pads), (step, *steps) = (
        list(values) * (3 if len(values) == 1 else 1) for values in options
    )
    x = site.reshape(x, (1,) * (5 - x.type.rank) + x.type.shape)
    x = constant_pad(site, x, (0, 0, 0, 0, pad, pad))
    batch, channels, depth, *image = x.type.shape
    count = (depth - (w.type.shape[2] - 1) * step - 1) // stride + 1
    y: Node | None = None
    for layer in range(w.type.shape[2]):
        first = layer * step
        part = site.slice(x, 2, first, first + (count - 1) * stride + 1, stride)
        part = site.reshape(site.move(part, 2, 1), (batch * count, channels, *image))
        filters = _dilated(site, _layer(site, w, layer), (steps[0], steps[1]))
        window = {"stride": (strides[0], strides[1]), "padding": (pads[0], pads[1])}
        part = _grouped(site, part, filters, bias if layer == 0 else None, groups, **window)
        y = part if y is None else site.make("add", y, part)
    assert y is not None, "a convolution without a window"
    y = site.reshape(y, (batch, count, *y.type.shape[1:]))
    return site.reshape(site.move(y, 1, 2), site.out.shape)


def _layer(site: Site, w: Node, layer: int) -> Node:
    value = site.value(w)
    if value is None:
        return site.select(w, 2, layer)
    return site.constants.hold(value[:, :, layer], w.type.dtype, w.name, w.source)


def _pair(values: Sequence[int] | int, rank: int, missing: int) -> tuple[int, ...]:
    values = [values] if isinstance(values, int) else list(values)
    values = values * rank if len(values) == 1 else values
    return (missing,) * (2 - rank) + tuple(values)


def _dilated(site: Site, w: Node, dilation: tuple[int, ...]) -> Node:
    """Weights with zeros between them."""
    if dilation == (1, 1):
        return w
    value = site.value(w)
    if value is None:
        advice = "give the convolution constant weights"
        raise Refused("a dilated convolution with computed weights", advice)
    sizes = [(n - 1) * d + 1 for n, d in zip(value.shape[2:], dilation, strict=True)]
    apart = np.zeros((*value.shape[:2], *sizes), value.dtype)
    apart[:, :, :: dilation[0], :: dilation[1]] = value
    return site.constant(apart, w.type.dtype, w.name)


def _padded_to_same(site: Site, x: Node, w: Node) -> Node:
    spare = [n - 1 for n in reversed(w.type.shape[2:])]
    widths = [side for n in spare for side in (n // 2, n - n // 2)]
    return constant_pad(site, x, widths)


def _grouped(
    site: Site, x: Node, w: Node, bias: Node | None, groups: int, **window: tuple[int, ...]
) -> Node:
    if groups == 1:
        return site.make("conv2d", x, w, *(() if bias is None else (bias,)), **window)
    if groups == x.type.shape[1] == w.type.shape[0]:
        return _depthwise(site, x, w, bias, **window)
    if groups > _FEW_GROUPS:
        return _by_windows(site, x, w, bias, groups, **window)
    inputs, outputs = x.type.shape[1] // groups, w.type.shape[0] // groups
    parts = []
    for group in range(groups):
        channels = site.slice(x, 1, group * inputs, (group + 1) * inputs)
        start, stop = group * outputs, (group + 1) * outputs
        own = [site.slice(y, 0, start, stop) for y in (w, bias) if y is not None]
        parts.append(site.make("conv2d", channels, *own, **window))
    return site.concat(parts, 1)


def _depthwise(
    site: Site,
    x: Node,
    w: Node,
    bias: Node | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> Node:
    """One filter a channel: the sum of the shifted images, each times its weight."""
    channels, _, height, width = w.type.shape
    x = constant_pad(site, x, (padding[1], padding[1], padding[0], padding[0]))
    rows, columns = (
        (n - k) // s + 1 for n, k, s in zip(x.type.shape[2:], (height, width), stride, strict=True)
    )
    y: Node | None = None
    for i in range(height):
        for j in range(width):
            part = site.slice(x, 2, i, i + (rows - 1) * stride[0] + 1, stride[0])
            part = site.slice(part, 3, j, j + (columns - 1) * stride[1] + 1, stride[1])
            weight = site.slice(site.slice(w, 2, i, i + 1), 3, j, j + 1)
            part = site.make("mul", part, site.reshape(weight, (channels, 1, 1)))
            y = part if y is None else site.make("add", y, part)
    assert y is not None, "a convolution without a window"
    return y if bias is None else site.make("add", y, site.reshape(bias, (channels, 1, 1)))


def _by_windows(
    site: Site,
    x: Node,
    w: Node,
    bias: Node | None,
    groups: int,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> Node:
    """Many groups: one product of matrices a group, of all windows with all its filters."""
    channels, inputs, height, width = w.type.shape
    x = constant_pad(site, x, (padding[1], padding[1], padding[0], padding[0]))
    y = windows(site, x, (height, width), stride, (1, 1))  # [B, C, rows, h, columns, w]
    batch, _, rows, _, columns, _ = y.type.shape
    y = site.reshape(y, (batch, groups, inputs, rows, height, columns, width))
    y = site.transpose(y, (0, 1, 3, 5, 2, 4, 6))
    size = inputs * height * width
    y = site.reshape(y, (batch, groups, rows * columns, size))
    filters = site.reshape(w, (groups, channels // groups, size))
    y = site.swap(site.make("matmul", y, site.swap(filters, 1, 2)), 2, 3)
    y = site.reshape(y, (batch, channels, rows, columns))
    return y if bias is None else site.make("add", y, site.reshape(bias, (channels, 1, 1)))


def windows(
    site: Site, x: Node, sizes: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Node:
    """x: [..., H, W] as [..., rows, h, columns, w]: every window."""
    for at, (size, stride, apart) in enumerate(zip(sizes, strides, dilation, strict=True)):
        axis = x.type.rank - 2 + at if at == 0 else x.type.rank - 1
        starts = np.arange(0, x.type.shape[axis] - (size - 1) * apart, stride)
        x = reorder(site, x, axis, starts[:, None] + apart * np.arange(size))
    return x


@lowers("aten.conv_transpose1d", "aten.conv_transpose2d")
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
    rank = w.type.rank - 2
    accept(rank in (1, 2), f"a convolution over {rank} axes", "convolve over 1 or 2 axes")
    value = site.value(w)
    advice = "give the convolution constant weights"
    accept(value is not None, "a transposed convolution with computed weights", advice)
    filters = np.asarray(value)
    x = site.reshape(x, (1,) * (w.type.rank - x.type.rank) + x.type.shape)
    if rank == 1:
        x = site.reshape(x, (*x.type.shape[:2], 1, x.type.shape[2]))
        filters = filters[:, :, None]
    strides, dilations = _pair(stride, rank, 1), _pair(dilation, rank, 1)
    pads, spare = _pair(padding, rank, 0), _pair(output_padding, rank, 0)
    apart = strides == filters.shape[2:] and dilations == (1, 1)
    if apart and pads == spare == (0, 0) and groups == 1:
        return site.reshape(_without_overlap(site, x, w, filters, bias), site.out.shape)
    ends = [d * (n - 1) - p for d, n, p in zip(dilations, filters.shape[2:], pads, strict=True)]
    x = _spread(site, x, strides)
    x = constant_pad(site, x, (ends[1], ends[1] + spare[1], ends[0], ends[0] + spare[0]))
    turned = filters.reshape(groups, -1, *filters.shape[1:]).swapaxes(1, 2)
    turned = turned.reshape(-1, filters.shape[0] // groups, *filters.shape[2:])[..., ::-1, ::-1]
    own = _dilated(site, site.constant(turned, w.type.dtype, w.name), dilations)
    y = _grouped(site, x, own, bias, groups, stride=(1, 1), padding=(0, 0))
    return site.reshape(y, site.out.shape)


def _without_overlap(site: Site, x: Node, w: Node, filters: np.ndarray, bias: Node | None) -> Node:
    """Every pixel becomes a patch of its own: one product, then the patches laid out."""
    inputs, outputs, height, width = filters.shape
    pointwise = filters.reshape(inputs, -1).T[..., None, None]
    y = site.make("conv2d", x, site.constant(pointwise, w.type.dtype, w.name))
    batch, _, rows, columns = y.type.shape
    y = site.reshape(y, (batch, outputs, height, width, rows, columns))
    y = site.transpose(y, (0, 1, 4, 2, 5, 3))
    y = site.reshape(y, (batch, outputs, rows * height, columns * width))
    return y if bias is None else site.make("add", y, site.reshape(bias, (outputs, 1, 1)))


def _spread(site: Site, x: Node, strides: Sequence[int]) -> Node:
    """``x`` [B, C, H, W] with zeros between its elements: ``strides`` apart."""
    for axis, step in zip((2, 3), strides, strict=True):
        shape = x.type.shape
        before, size, behind = shape[:axis], shape[axis], shape[axis + 1 :]
        x = site.reshape(x, (*before, size, 1, *behind))
        zeros = site.constant(0, x.type.dtype)
        gaps = site.broadcast(zeros, (*before, size, step - 1, *behind))
        x = site.reshape(site.concat([x, gaps], axis + 1), (*before, size * step, *behind))
        x = site.slice(x, axis, 0, (size - 1) * step + 1)
    return x
