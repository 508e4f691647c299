"""Products and the layers of a transformer. Floating sums may be taken in any order."""

from __future__ import annotations

import numpy as np

from ..types import FLOATS, Type
from .elementwise import ACTIVATIONS
from .table import REQUIRED, axis_of, broadcast_shapes, op, want

Array = np.ndarray


def widened(x: Array) -> Array:
    """Halves as float32: products of them are summed so, and rounded once, as tensor cores do."""
    return x.astype(np.float32) if x.dtype == np.float16 else x


def matmul(a: Type, b: Type) -> Type:
    want(a.rank >= 2 and b.rank >= 2, f"needs matrices, got {a} and {b}")
    want(a.dtype == b.dtype, f"operands of different dtypes: {a}, {b}")
    want(a.shape[-1] == b.shape[-2], f"inner sizes differ: {a}, {b}")
    batch = broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return Type(a.dtype, (*batch, a.shape[-2], b.shape[-1]))


def linear(x: Type, w: Type, bias: Type | None = None, activation: str = "none") -> Type:
    want(x.rank >= 1 and w.rank == 2, f"needs x[..., K] and w[N, K], got {x} and {w}")
    want(x.shape[-1] == w.shape[1], f"x has {x.shape[-1]} features, w wants {w.shape[1]}")
    want(bias is None or bias.shape == w.shape[:1], f"bias {bias} for {w.shape[0]} outputs")
    want(activation in ACTIVATIONS, f"activation '{activation}', known: {sorted(ACTIVATIONS)}")
    return Type(x.dtype, (*x.shape[:-1], w.shape[0]))


def linear_meaning(x: Array, w: Array, bias: Array | None = None, *, activation: str) -> Array:
    wide = widened(x)
    # One product of all rows: NumPy would make a small one for each of the leading axes.
    y = (wide.reshape(-1, x.shape[-1]) @ widened(w).T).reshape(*x.shape[:-1], w.shape[0])
    return ACTIVATIONS[activation](y if bias is None else y + widened(bias)).astype(x.dtype)


def conv2d(
    x: Type,
    w: Type,
    bias: Type | None = None,
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (0, 0),
) -> Type:
    want(x.rank == 4 and w.rank == 4, f"needs x[B, C, H, W] and w[N, C, h, w], got {x}, {w}")
    want(x.shape[1] == w.shape[1], f"x has {x.shape[1]} channels, w wants {w.shape[1]}")
    want(bias is None or bias.shape == w.shape[:1], f"bias {bias} for {w.shape[0]} channels")
    sizes = [(x.shape[2 + i] + 2 * padding[i] - w.shape[2 + i]) // stride[i] + 1 for i in range(2)]
    want(min(sizes) >= 1, f"the window of {w} does not fit {x}")
    return Type(x.dtype, (x.shape[0], w.shape[0], *sizes))


def conv2d_meaning(
    x: Array,
    w: Array,
    bias: Array | None = None,
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> Array:
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1]]
    y = np.einsum("bcijhw,nchw->bnij", windows, w, optimize=True).astype(x.dtype)
    return y if bias is None else y + bias[:, None, None]


def layer_norm(x: Type, weight: Type, bias: Type, eps: float) -> Type:
    want(x.dtype in FLOATS, f"needs a float, got {x}")
    fits = weight.shape == bias.shape == x.shape[-1:]
    want(fits, f"weight {weight} and bias {bias} for rows of {x.shape[-1]}")
    return x


def layer_norm_meaning(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True, dtype=x.dtype)
    variance = np.mean(centred * centred, -1, keepdims=True, dtype=x.dtype)
    return centred / np.sqrt(variance + x.dtype.type(eps)) * weight + bias


def along_axis(x: Type, axis: int) -> Type:
    want(x.dtype in FLOATS, f"needs a float, got {x}")
    axis_of(axis, x.rank)
    return x


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def attention(q: Type, k: Type, v: Type, scale: float, causal: bool) -> Type:
    fits = q.rank == k.rank == v.rank == 4 and q.shape[:2] == k.shape[:2] == v.shape[:2]
    fits = fits and q.shape[3] == k.shape[3] and k.shape[2] == v.shape[2]
    want(fits, f"needs q, k, v [B, H, T, d], got {q}, {k}, {v}")
    return Type(q.dtype, (*q.shape[:3], v.shape[3]))


def attention_meaning(q: Array, k: Array, v: Array, scale: float, causal: bool) -> Array:
    dtype = q.dtype
    q, k, v = widened(q), widened(k), widened(v)
    scores = q @ np.swapaxes(k, -1, -2) * q.dtype.type(scale)
    if causal:
        ahead = np.triu(np.ones(scores.shape[-2:], bool), 1)
        scores = np.where(ahead, scores.dtype.type(-np.inf), scores)
    return (softmax(scores, -1) @ v).astype(dtype)


def qkv_attention(qkv: Type, heads: int, scale: float, causal: bool) -> Type:
    want(qkv.rank == 3, f"needs qkv[B, T, 3 * heads * d], got {qkv}")
    want(qkv.shape[2] % (3 * heads) == 0, f"{qkv.shape[2]} is no multiple of 3 * {heads} heads")
    return Type(qkv.dtype, (*qkv.shape[:2], qkv.shape[2] // 3))


def qkv_attention_meaning(qkv: Array, heads: int, scale: float, causal: bool) -> Array:
    b, t, n = qkv.shape
    q, k, v = qkv.reshape(b, t, 3, heads, n // (3 * heads)).transpose(2, 0, 3, 1, 4)
    y = attention_meaning(q, k, v, scale, causal)  # [b, heads, t, d]
    return y.transpose(0, 2, 1, 3).reshape(b, t, n // 3)


OPS = [
    op(
        "matmul",
        "a b",
        matmul,
        lambda a, b: (widened(a) @ widened(b)).astype(a.dtype),
        "product of the last two axes",
    ),
    op(
        "linear",
        "x w bias?",
        linear,
        linear_meaning,
        "activation(x @ w.T + bias), w[N, K]",
        activation="none",
    ),
    op(
        "conv2d",
        "x w bias?",
        conv2d,
        conv2d_meaning,
        "cross-correlation of x[B, C, H, W] with w[N, C, h, w]",
        stride=(1, 1),
        padding=(0, 0),
    ),
    op(
        "layer_norm",
        "x weight bias",
        layer_norm,
        layer_norm_meaning,
        "(x - mean) / sqrt(var + eps) * weight + bias over the last axis",
        eps=1e-5,
    ),
    op("softmax", "x", along_axis, softmax, "exp(x) / sum exp(x) along an axis", axis=-1),
    op(
        "attention",
        "q k v",
        attention,
        attention_meaning,
        "softmax(scale * q @ k.T) @ v for q, k, v [B, H, T, d]",
        scale=REQUIRED,
        causal=False,
    ),
    op(
        "qkv_attention",
        "qkv",
        qkv_attention,
        qkv_attention_meaning,
        "attention on one tensor [B, T, (q, k, v) x heads x d]",
        heads=REQUIRED,
        scale=REQUIRED,
        causal=False,
    ),
]
