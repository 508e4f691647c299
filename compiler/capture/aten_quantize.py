"""ATen calls that round to levels, as quantisation-aware training does, and that count in bins."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir.graph import Node
from .aten_elementwise import arithmetic, truth
from .site import Site, accept, lowers


@lowers("aten.fake_quantize_per_tensor_affine", "aten.fake_quantize_per_tensor_affine_cachemask")
def by_tensor(site: Site, x: Node, scale: Any, zero: Any, low: int, high: int) -> Any:
    """(clip(round(x / scale) + zero, low, high) - zero) * scale; a mask behind it is not read."""
    return _result(site, _rounded(site, x, scale, zero, low, high))


@lowers("aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams")
def if_enabled(
    site: Site, x: Node, scale: Any, zero: Any, enabled: Node, low: int, high: int
) -> Any:
    """The same, or x as it is where ``enabled`` [1] is 0."""
    rounded = _rounded(site, x, scale, zero, low, high)
    return _result(site, site.make("where", truth(site, enabled), rounded, x))


@lowers("aten.fake_quantize_per_channel_affine", "aten.fake_quantize_per_channel_affine_cachemask")
def by_channel(site: Site, x: Node, scale: Node, zero: Node, axis: int, low: int, high: int) -> Any:
    """The same with a scale and a zero for each channel."""
    shape = [1] * x.type.rank
    shape[axis] = x.type.shape[axis]
    scale, zero = (site.reshape(part, shape) for part in (scale, zero))
    return _result(site, _rounded(site, x, scale, zero, low, high))


def _rounded(site: Site, x: Node, scale: Any, zero: Any, low: int, high: int) -> Node:
    scale, zero = (site.tensor(part, x.type.dtype) for part in (scale, zero))
    one = site.constant(1, x.type.dtype)
    level = site.make("round", site.make("mul", x, site.make("div", one, scale)))
    level = site.make("clip", site.make("add", level, zero), low=low, high=high)
    return site.make("mul", site.make("sub", level, zero), scale)


def _result(site: Site, y: Node) -> Any:
    return (y, None) if isinstance(site.out, tuple) else y


@lowers("aten.histc")
def histc(site: Site, x: Node, bins: int = 100, low: float = 0, high: float = 0) -> Node:
    """How many elements lie in each of equal bins; those outside are left out."""
    advice = "give the limits of the bins: torch.histc(x, bins, min, max)"
    accept(low < high, "bins between the smallest and the largest element", advice)
    flat = site.reshape(x, (x.type.size, 1))
    place = arithmetic(site, "mul", arithmetic(site, "sub", flat, low), bins)
    place = site.make("floor", arithmetic(site, "div", place, high - low))
    last = site.constant(bins - 1, x.type.dtype)
    at_end = site.make("equal", flat, site.constant(high, x.type.dtype))
    place = site.make("where", at_end, last, place)
    each = site.constant(np.arange(bins), x.type.dtype)
    return site.sum(site.cast(site.make("equal", place, each), x.type.dtype), (0,))
