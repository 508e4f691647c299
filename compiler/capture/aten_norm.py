"""ATen's softmaxes and normalisations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from ..ir.graph import Node
from .aten_reduce import variance_of
from .site import Site, lowers


@lowers("aten.softmax", "aten._softmax", "aten.special_softmax")
def softmax(site: Site, x: Node, axis: int, *_: Any, **__: Any) -> Node:
    x = site.cast(x, site.out.dtype)
    # Kernels take rows: another axis becomes the last.
    if not x.type.rank or axis % x.type.rank == x.type.rank - 1:
        return site.make("softmax", x, axis=axis)
    return site.move(site.make("softmax", site.move(x, axis, -1), axis=-1), -1, axis)


@lowers("aten._safe_softmax")
def safe_softmax(site: Site, x: Node, axis: int, *_: Any, **__: Any) -> Node:
    """The softmax, but 0 in a row of -inf alone."""
    y = softmax(site, x, axis)
    there = site.make("not_equal", x, site.constant(-math.inf, x.type.dtype))
    there = site.make("max", there, axes=(axis % max(1, x.type.rank),), keep=True)
    return site.make("where", there, y, site.constant(0, y.type.dtype))


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
    mean, variance, use_own, momentum, eps = arguments[:5]
    if not use_own:
        return batch_norm(site, x, weight, bias, mean, variance, False, momentum, eps)
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


@lowers("aten._native_batch_norm_legit.no_stats")
def native_batch_norm_of_batch(
    site: Site, x: Node, weight: Node | None, bias: Node | None, _: bool, *numbers: float
) -> tuple[Node | None, ...]:
    momentum, eps = numbers
    return batch_norm(site, x, weight, bias, None, None, True, momentum, eps), None, None


@lowers("aten._native_batch_norm_legit_no_training", "aten.cudnn_batch_norm")
def native_batch_norm_eval(site: Site, x: Node, *arguments: Any) -> tuple[Node | None, ...]:
    weight, bias, mean, variance, momentum, eps = arguments[:6]
    y = batch_norm(site, x, weight, bias, mean, variance, False, momentum, eps)
    return (y, *(None,) * (len(site.out) - 1))
