"""ATen's products: matrices and attention."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..ir.graph import Node
from .aten_elementwise import arithmetic, compare
from .aten_shape import repeat_interleave
from .site import Site, accept, lowers


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
    lowest = site.constant(-math.inf, q.type.dtype)
    if mask.type.dtype == "bool":
        scores = site.make("where", mask, scores, lowest)
    else:
        scores = site.make("add", scores, mask)
    y = site.make("matmul", site.make("softmax", scores, axis=-1), v)
    seen = _sees_a_key(site, mask, lowest)
    return y if seen is None else site.make("where", seen, y, site.constant(0, y.type.dtype))


def _sees_a_key(site: Site, mask: Node, lowest: Node) -> Node | None:
    """Whether each query sees a key, for torch gives 0 to one that sees none; None: they all do."""
    is_bool = mask.type.dtype == "bool"
    value = site.value(mask)
    if value is not None and (value if is_bool else value != -math.inf).any(-1).all():
        return None
    allowed = mask if is_bool else site.make("not_equal", mask, lowest)
    return site.make("max", allowed, axes=(allowed.type.rank - 1,), keep=True)


@lowers("aten.linalg_matrix_exp", "aten.matrix_exp")
def matrix_exp(site: Site, x: Node) -> Node:
    """exp of 2x2 matrices m + [p, b; c, -p]: e^m (cosh s + [p, b; c, -p] sinh(s) / s).

    s^2 = p^2 + b c; where that is below zero, as of skew matrices, cosh and sinh are cos and sin.
    """
    advice = "take the exponential of constants, before rows of them are chosen"
    accept(x.type.shape[-2:] == (2, 2), "exponentials of matrices other than 2x2", advice)
    flat = site.reshape(x, (*x.type.shape[:-2], 4))
    a, b, c, d = (site.slice(flat, flat.type.rank - 1, i, i + 1) for i in range(4))

    def of(op: str, u: Node | float, v: Node | float) -> Node:
        return arithmetic(site, op, u, v)

    middle, p = of("mul", of("add", a, d), 0.5), of("mul", of("sub", a, d), 0.5)
    square = of("add", of("mul", p, p), of("mul", b, c))
    size = of("maximum", site.make("sqrt", site.make("abs", square)), 1e-20)
    up, down = site.make("exp", size), site.make("exp", site.make("neg", size))
    series = of("add", of("mul", square, 1 / 120), 1 / 6)  # where sinh loses digits
    series = of("add", of("mul", series, square), 1)
    odd = of("div", of("mul", of("sub", up, down), 0.5), size)
    odd = site.make("where", compare(site, "less", square, 0.01), series, odd)
    turns = compare(site, "less", square, 0.0)
    odd = site.make("where", turns, of("div", site.make("sin", size), size), odd)
    even = of("mul", of("add", up, down), 0.5)
    even = site.make("where", turns, site.make("cos", size), even)
    part = of("mul", p, odd)
    parts = [of("add", even, part), of("mul", b, odd), of("mul", c, odd), of("sub", even, part)]
    whole = of("mul", site.concat(parts, parts[0].type.rank - 1), site.make("exp", middle))
    return site.reshape(whole, x.type.shape)
