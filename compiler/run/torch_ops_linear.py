"""Products and the layers of a transformer, on torch tensors.

Products of halves are the library's, which has tensor cores for them; it rounds a sum before the
activation, once more than the interpreter. Of float32 all is computed in float32: where the library
would take fewer digits unasked (convolutions do), products are written as matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .torch_ops_elementwise import ACTIVATIONS
from .torch_types import HALVES, alike, widened


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of matrices. Sums of integers are modulo 2**64."""
    if a.is_floating_point():
        return a @ b
    # GPUs have no library for products of integers.
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def linear(x: Tensor, w: Tensor, bias: Tensor | None = None, *, activation: str) -> Tensor:
    x, w, *biases = alike(x, w, *(() if bias is None else (bias,)))
    if x.is_floating_point():
        y = functional.linear(x, w, *biases)
    else:
        y = product(x.reshape(-1, x.shape[-1]), w.T).reshape(*x.shape[:-1], w.shape[0])
        y = y + biases[0] if biases else y
    return y if activation == "none" else ACTIVATIONS[activation](widened(y))


def conv2d(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> Tensor:
    x, w, *biases = alike(x, w, *(() if bias is None else (bias,)))
    if x.dtype in HALVES:
        return functional.conv2d(x, w, biases[0] if biases else None, stride, padding)
    outputs, channels, height, width = w.shape
    x = functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    windows = x.unfold(2, height, stride[0]).unfold(3, width, stride[1])  # [B, C, i, j, h, w]
    batch, _, rows, columns = windows.shape[:4]
    flat = windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels * height * width)
    y = product(flat, w.reshape(outputs, -1).T)
    y = y.reshape(batch, rows, columns, outputs).permute(0, 3, 1, 2)
    return y + biases[0][:, None, None] if biases else y


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    x, weight, bias = alike(x, weight, bias)
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    q, k, v = alike(q, k, v)
    if q.dtype in HALVES:
        # A row that sees scores of -infinity only is NaN here, but 0 in some of the library's ways.
        return functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    scores = q @ k.transpose(-1, -2) * scale
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(ahead, -math.inf)
    return scores.softmax(-1) @ v


def qkv_attention(qkv: Tensor, heads: int, scale: float, causal: bool) -> Tensor:
    b, t, n = qkv.shape
    q, k, v = qkv.reshape(b, t, 3, heads, n // (3 * heads)).permute(2, 0, 3, 1, 4)
    y = attention(q, k, v, scale, causal)  # [b, heads, t, d]
    return y.transpose(1, 2).reshape(b, t, n // 3)


TABLE: dict[str, Callable[..., Any]] = {
    "matmul": product,
    "linear": linear,
    "conv2d": conv2d,
    "layer_norm": layer_norm,
    "softmax": lambda x, axis: torch.softmax(x, axis),
    "attention": attention,
    "qkv_attention": qkv_attention,
}
