"""ATen's softmaxes, normalisations and poolings."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from ..ir.graph import Node
from .aten_elementwise import arithmetic
from .aten_reduce import variance_of
from .aten_shape import constant_pad, reorder
from .site import Site, accept, lowers


@lowers("aten.softmax", "aten._softmax", "aten._safe_softmax", "aten.special_softmax")
def softmax(site: Site, x: Node, axis: int, *_: Any, **__: Any) -> Node:
    return site.make("softmax", site.cast(x, site.out.dtype), axis=axis)


@lowers("aten.log_softmax", "aten._log_softmax", "aten.special_log_softmax")
def log_softmax(site: Site, x: Node, axis: int, *_: Any, **__: Any) -> Node:
    x = site.cast(x, site.out.dtype)
    x = site.make("sub", x, site.make("max", x, axes=(axis % x.type.rank,), keep=True))
    total = site.make("sum", site.make("exp", x), axes=(axis % x.type.rank,), keep=True)
    return site.make("sub", x, site.make("log", total))


@lowers("aten.layer_norm")
def layer_norm(
    site: Site,
    x: Node,
    shape: Sequence[int],
    weight: Node | None = None,
    bias: Node | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Node:
    # Several axes are one axis: they are the last ones.
    width, whole, dtype = prod(shape), x.type.shape, x.type.dtype
    x = site.reshape(x, (*whole[: len(whole) - len(shape)], width))
    weight = site.constant(np.ones(width), dtype) if weight is None else weight
    bias = site.constant(np.zeros(width), dtype) if bias is None else bias
    weight, bias = site.reshape(weight, (width,)), site.reshape(bias, (width,))
    return site.reshape(site.make("layer_norm", x, weight, bias, eps=eps), whole)


@lowers("aten.native_layer_norm")
def native_layer_norm(site: Site, x: Node, *arguments: Any) -> tuple[Node | None, ...]:
    return layer_norm(site, x, *arguments), None, None


@lowers("aten.rms_norm", "aten._fused_rms_norm")
def rms_norm(
    site: Site, x: Node, shape: Sequence[int], weight: Node | None = None, eps: float | None = None
) -> Any:
    eps = 2.0**-23 if eps is None else eps  # torch: the machine epsilon of the dtype
    axes = tuple(range(x.type.rank - len(shape), x.type.rank))
    power = site.make("mean", site.make("mul", x, x), axes=axes, keep=True)
    inverse = site.make("rsqrt", _plus(site, power, eps))
    y = site.make("mul", x, inverse)
    y = y if weight is None else site.make("mul", y, weight)
    return (y, inverse) if isinstance(site.out, tuple) else y


def _plus(site: Site, x: Node, number: float) -> Node:
    return site.make("add", x, site.constant(number, x.type.dtype))


@lowers("aten.group_norm")
def group_norm(
    site: Site,
    x: Node,
    groups: int,
    weight: Node | None = None,
    bias: Node | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Node:
    batch, channels, *rest = x.type.shape
    width = x.type.size // (batch * groups)
    y = layer_norm(site, site.reshape(x, (batch, groups, width)), (width,), None, None, eps)
    y = site.reshape(y, x.type.shape)
    return _per_channel(site, y, weight, bias, channels, len(rest))


@lowers("aten.native_group_norm")
def native_group_norm(
    site: Site, x: Node, weight: Node | None, bias: Node | None, *sizes: Any
) -> tuple[Node | None, ...]:
    *_, groups, eps = sizes  # batch, channels, pixels, groups, eps
    return group_norm(site, x, groups, weight, bias, eps), None, None


@lowers("aten.instance_norm")
def instance_norm(
    site: Site, x: Node, weight: Node | None, bias: Node | None, *arguments: Any
) -> Node:
    use_own, eps = arguments[2], arguments[4]
    accept(use_own, "instance_norm with running statistics", "use track_running_stats=False")
    batch, channels, *rest = x.type.shape
    rows = site.reshape(x, (batch, channels, prod(rest)))
    y = site.reshape(layer_norm(site, rows, (prod(rest),), None, None, eps), x.type.shape)
    return _per_channel(site, y, weight, bias, channels, len(rest))


def _per_channel(
    site: Site, x: Node, weight: Node | None, bias: Node | None, channels: int, behind: int
) -> Node:
    shape = (channels, *(1,) * behind)
    x = x if weight is None else site.make("mul", x, site.reshape(weight, shape))
    return x if bias is None else site.make("add", x, site.reshape(bias, shape))


@lowers("aten.batch_norm")
def batch_norm(
    site: Site,
    x: Node,
    weight: Node | None,
    bias: Node | None,
    mean: Node | None,
    variance: Node | None,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Node:
    channels, behind = x.type.shape[1], x.type.rank - 2
    if mean is None or variance is None:
        axes = (0, *range(2, x.type.rank))
        variance, mean = variance_of(site, x, axes, 0, keep=False)
    else:
        # Statistics that are also written are made functional under another name, and refused.
        assert not training, "batch_norm with running statistics while training"
    shape = (channels, *(1,) * behind)
    inverse = site.make("rsqrt", _plus(site, variance, eps))
    scale = inverse if weight is None else site.make("mul", inverse, weight)
    y = site.make("sub", x, site.reshape(mean, shape))
    return _per_channel(site, y, scale, bias, channels, behind)


@lowers("aten._native_batch_norm_legit_no_training", "aten.cudnn_batch_norm")
def native_batch_norm_eval(site: Site, x: Node, *arguments: Any) -> tuple[Node | None, ...]:
    weight, bias, mean, variance, momentum, eps = arguments[:6]
    y = batch_norm(site, x, weight, bias, mean, variance, False, momentum, eps)
    return (y, *(None,) * (len(site.out) - 1))


def _windows(
    site: Site, x: Node, sizes: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Node:
    """x: [..., H, W] as [..., rows, h, columns, w]: every window."""
    for at, (size, stride, apart) in enumerate(zip(sizes, strides, dilation, strict=True)):
        axis = x.type.rank - 2 + at if at == 0 else x.type.rank - 1
        starts = np.arange(0, x.type.shape[axis] - (size - 1) * apart, stride)
        x = reorder(site, x, axis, starts[:, None] + apart * np.arange(size))
    return x


def _two(values: Any, default: Sequence[int] | None = None) -> list[int]:
    if values is None or values == [] or values == ():
        assert default is not None, "a window without a size"
        return list(default)
    values = [values] if isinstance(values, int) else list(values)
    return values * 2 if len(values) == 1 else values


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
    accept(not ceil_mode, "max_pool2d with ceil_mode", "pad the image")
    high, wide = _two(padding)
    x = constant_pad(site, x, (wide, wide, high, high), -np.inf)
    y = _windows(site, x, _two(size), _two(stride, _two(size)), _two(dilation))
    rank = y.type.rank
    y = site.make("max", y, axes=(rank - 3, rank - 1))
    return (y, None) if isinstance(site.out, tuple) else y


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
    sizes, (high, wide) = _two(size), _two(padding)
    plain = not ceil_mode and (count_padding or high == wide == 0)
    accept(plain, "avg_pool2d with ceil_mode or uncounted padding", "pad the image before it")
    x = constant_pad(site, x, (wide, wide, high, high))
    y = _windows(site, x, sizes, _two(stride, sizes), (1, 1))
    axes = (y.type.rank - 3, y.type.rank - 1)
    y = site.make("sum", y, axes=axes)
    return arithmetic(site, "div", y, divisor or prod(sizes))


@lowers("aten.adaptive_avg_pool2d", "aten._adaptive_avg_pool2d", "aten.adaptive_avg_pool1d")
def adaptive_average_pool(site: Site, x: Node, size: Any) -> Node:
    count = 1 if site.operator.endswith("1d") else 2
    front, inner = x.type.shape[:-count], x.type.shape[-count:]
    outer = site.out.shape[-count:]
    fits = all(n % m == 0 for n, m in zip(inner, outer, strict=True))
    accept(fits, f"adaptive pooling of {inner} to {outer}", "choose a size that divides the image")
    apart = [n for i, m in zip(inner, outer, strict=True) for n in (m, i // m)]
    y = site.reshape(x, (*front, *apart))
    axes = tuple(len(front) + 1 + 2 * at for at in range(count))
    return site.make("mean", y, axes=axes)


@lowers("aten.im2col")
def im2col(site: Site, x: Node, size: Any, dilation: Any, padding: Any, stride: Any) -> Node:
    high, wide = _two(padding)
    x = constant_pad(site, x, (wide, wide, high, high))
    y = _windows(site, x, _two(size), _two(stride), _two(dilation))  # [B, C, rows, h, columns, w]
    *front, rows, h, columns, w = range(y.type.rank)
    return site.reshape(site.transpose(y, (*front, h, w, rows, columns)), site.out.shape)


@lowers("aten.upsample_nearest2d")
def upsample_nearest(site: Site, x: Node, *_: Any) -> Node:
    for axis in (x.type.rank - 2, x.type.rank - 1):
        size, wanted = x.type.shape[axis], site.out.shape[axis]
        x = reorder(site, x, axis, np.arange(wanted) * size // wanted)
    return x
