"""ATen's products: matrices, convolutions, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..ir.graph import Node
from .aten_elementwise import arithmetic
from .aten_shape import constant_pad, repeat_interleave
from .site import Refused, Site, accept, lowers

_MOST_GROUPS = 8


@lowers("aten.linear")
def linear(site: Site, x: Node, w: Node, bias: Node | None = None) -> Node:
    if w.type.rank == 1:
        return product(site, x, w)
    return site.make("linear", x, w, *(() if bias is None else (bias,)))


@lowers("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot")
def product(site: Site, a: Node, b: Node) -> Node:
    """torch.matmul: a vector on the left is a row, on the right a column, and its axis goes."""
    left = site.reshape(a, (1, a.type.size)) if a.type.rank == 1 else a
    right = site.reshape(b, (b.type.size, 1)) if b.type.rank == 1 else b
    y = _by_constant(site, left, right)
    y = site.make("matmul", left, right) if y is None else y
    return site.reshape(y, site.out.shape)


def _by_constant(site: Site, x: Node, b: Node) -> Node | None:
    """``x @ b`` as `linear` where b is a constant matrix, whatever way round the user held it."""
    value = site.value(b)
    if value is None or value.ndim != 2:
        return None
    return site.make("linear", x, site.constants.hold(value.T, b.type.dtype, b.name, b.source))


@lowers("aten.addmm", "aten.baddbmm", "aten.addbmm", "aten.addmv")
def product_and_sum(
    site: Site, bias: Node, a: Node, b: Node, *, beta: float = 1, alpha: float = 1
) -> Node:
    plain = beta == 1 and alpha == 1 and site.operator == "addmm"
    value = site.value(b)
    if plain and value is not None and bias.type.shape == value.shape[1:]:
        w = site.constants.hold(value.T, b.type.dtype, b.name, b.source)
        return site.make("linear", a, w, bias)
    y = site.make("matmul", a, b) if b.type.rank > 1 else product(site, a, b)
    y = site.sum(y, (0,)) if site.operator == "addbmm" else y
    y = y if alpha == 1 else arithmetic(site, "mul", y, alpha)
    if beta == 0:
        return y
    return site.make("add", bias if beta == 1 else arithmetic(site, "mul", bias, beta), y)


@lowers("aten.outer", "aten.ger")
def outer(site: Site, a: Node, b: Node) -> Node:
    return arithmetic(site, "mul", site.reshape(a, (a.type.size, 1)), b)


@lowers("aten.conv2d", "aten.conv1d")
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
    accept(rank in (1, 2), f"a convolution over {rank} axes", "convolve over 1 or 2 axes")
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
    accept(not transposed, "a transposed convolution", "use linear and a reshape (pixel_shuffle)")
    return convolution(site, x, w, bias, stride, padding, dilation, groups)


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
    advice = f"at most {_MOST_GROUPS} groups, or one a channel"
    accept(groups <= _MOST_GROUPS, f"a convolution of {groups} groups", advice)
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


@lowers(
    "aten.scaled_dot_product_attention",
    "aten._scaled_dot_product_attention_math",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
)
def attention(
    site: Site, q: Node, k: Node, v: Node, *arguments: object, **named: object
) -> Node | tuple[Node | None, ...]:
    options = {**_attention_options(site.operator, arguments), **named}
    advice = "pass dropout_p=0.0 where the model is not training"
    accept(not options.get("dropout_p"), "attention with dropout", advice)
    y = _attend(site, q, k, v, options)
    # The variants also give statistics that only the backward pass reads.
    return (y, *(None,) * (len(site.out) - 1)) if isinstance(site.out, tuple) else y


def _attention_options(operator: str, arguments: tuple[object, ...]) -> dict[str, object]:
    names = {
        "_scaled_dot_product_flash_attention_for_cpu": ("dropout_p", "is_causal"),
        "_scaled_dot_product_flash_attention": ("dropout_p", "is_causal", "return_debug_mask"),
        "_scaled_dot_product_efficient_attention": (
            "attn_mask", "compute_log_sumexp", "dropout_p", "is_causal",
        ),
    }.get(operator, ("attn_mask", "dropout_p", "is_causal"))  # fmt: skip
    return dict(zip(names, arguments, strict=False))


def _attend(site: Site, q: Node, k: Node, v: Node, options: dict[str, object]) -> Node:
    given = options.get("scale")
    scale = 1 / math.sqrt(q.type.shape[-1]) if given is None else float(given)  # type: ignore[arg-type]
    if options.get("enable_gqa") and k.type.shape[-3] != q.type.shape[-3]:
        times = q.type.shape[-3] // k.type.shape[-3]
        k, v = (_repeat_heads(site, x, times) for x in (k, v))
    mask, causal = options.get("attn_mask"), bool(options.get("is_causal"))
    heads = np.broadcast_shapes(q.type.shape[:-2], k.type.shape[:-2], v.type.shape[:-2])
    q, k, v = (site.broadcast(x, (*heads, *x.type.shape[-2:])) for x in (q, k, v))
    shape = (*q.type.shape[:-1], v.type.shape[-1])
    if isinstance(mask, Node):
        return site.reshape(_masked_attention(site, q, k, v, mask, scale), shape)
    front = (math.prod(heads[:-1]), heads[-1]) if len(heads) else (1, 1)
    q, k, v = (site.reshape(x, (*front, *x.type.shape[-2:])) for x in (q, k, v))
    return site.reshape(site.make("attention", q, k, v, scale=scale, causal=causal), shape)


def _repeat_heads(site: Site, x: Node, times: int) -> Node:
    shape = (*x.type.shape[:-3], times * x.type.shape[-3], *x.type.shape[-2:])
    spread = replace(site, out=x.type.with_shape(*shape))
    return repeat_interleave(spread, x, times, -3)


def _masked_attention(site: Site, q: Node, k: Node, v: Node, mask: Node, scale: float) -> Node:
    scores = site.make("matmul", q, site.swap(k, -1, -2))
    scores = site.make("mul", scores, site.constant(scale, q.type.dtype))
    if mask.type.dtype == "bool":
        scores = site.make("where", mask, scores, site.constant(-math.inf, q.type.dtype))
    else:
        scores = site.make("add", scores, mask)
    return site.make("matmul", site.make("softmax", scores, axis=-1), v)
