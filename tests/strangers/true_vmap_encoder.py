"""Sequence encoder in functional style: pure functions over stacked parameters, vmap over experts, einsum everywhere.

Butterfly = FFT style, no shuffle: layer l rotates channels at distance 2**l, with explicit 2x2 rotation matrices.
The input side is the transpose B(theta)^T (layers reversed, matrices transposed), as in eq. (3); activation AFTER B(phi):
h = gelu(B(phi_i) (W_hat B(theta_i)^T x + b_up)). Every expert is evaluated on every token (vmap) and the non-chosen ones
get gate 0. Gates are sigmoid of the top-k logits, not renormalised; gamma is per row; W_down is ternary and,
being shared and linear, applied once to the gate-weighted sum; its bias is added once.
"""
import math
from functools import partial, reduce

import torch
from torch import Tensor, nn
from torch.func import vmap


# ---- pure functions -------------------------------------------------------------------------------------------------

def ternary(w: Tensor) -> Tensor:
    g = w.abs().mean(dim=1, keepdim=True)
    q = g * (w / (g + 1e-8)).round().clamp(-1.0, 1.0)
    return (q - w).detach() + w


def givens(a: Tensor) -> Tensor:
    """(...,) -> (..., 2, 2)"""
    c, s = a.cos(), a.sin()
    return torch.stack((c, -s, s, c), dim=-1).unflatten(-1, (2, 2))


def stage(x: Tensor, level_and_angles, transpose: bool = False) -> Tensor:
    level, a = level_and_angles
    stride = 1 << level
    R = givens(a).unflatten(0, (-1, stride))  # block, offset, i, j
    z = x.unflatten(-1, (-1, 2, stride))  # ..., block, {lo, hi}, offset
    eq = "bsij,...bis->...bjs" if transpose else "bsij,...bjs->...bis"
    return torch.einsum(eq, R, z).flatten(-3)


def butterfly(x: Tensor, angles: Tensor) -> Tensor:
    return reduce(stage, enumerate(angles), x)


def butterfly_t(x: Tensor, angles: Tensor) -> Tensor:
    return reduce(partial(stage, transpose=True), reversed(list(enumerate(angles))), x)


def expert_hidden(theta: Tensor, phi: Tensor, w: Tensor, b: Tensor, x: Tensor) -> Tensor:
    u = torch.einsum("fd,td->tf", w, butterfly_t(x, theta)) + b
    return nn.functional.gelu(butterfly(u, phi))


def gates(x: Tensor, wg: Tensor, bg: Tensor, k: int) -> Tensor:
    logits = torch.einsum("ed,td->te", wg, x) + bg
    v, i = logits.topk(k, dim=-1)
    return torch.zeros_like(logits).scatter(-1, i, v.sigmoid())


def moe(p, x: Tensor, k: int) -> Tensor:
    shape = x.shape
    x = x.reshape(-1, shape[-1])
    all_hidden = vmap(expert_hidden, in_dims=(0, 0, None, None, None))(
        p["theta"], p["phi"], ternary(p["w_up"]), p["b_up"], x
    )
    mixed = torch.einsum("te,etf->tf", gates(x, p["wg"], p["bg"], k), all_hidden)
    return (torch.einsum("df,tf->td", ternary(p["w_down"]), mixed) + p["b_down"]).reshape(shape)


def layer_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    mu = x.mean(-1, keepdim=True)
    var = (x - mu).square().mean(-1, keepdim=True)
    return (x - mu) * (var + 1e-5).rsqrt() * w + b


def attention(p, x: Tensor) -> Tensor:
    q, k, v = torch.einsum("chkd,btd->cbhtk", p["wqkv"], x).unbind(0)
    a = torch.einsum("bhqk,bhsk->bhqs", q, k).div(math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("bhqs,bhsk,hkd->bqd", a, v, p["wo"])


def block(x: Tensor, p, k: int) -> Tensor:
    x = x + attention(p, layer_norm(x, p["ln1_w"], p["ln1_b"]))
    return x + moe(p, layer_norm(x, p["ln2_w"], p["ln2_b"]), k)


def sincos(t: int, d: int, like: Tensor) -> Tensor:
    pos = torch.arange(t, dtype=like.dtype, device=like.device)
    freq = torch.exp(torch.arange(0, d, 2, dtype=like.dtype, device=like.device) * (-math.log(1e4) / d))
    ang = torch.einsum("t,f->tf", pos, freq)
    return torch.cat((ang.sin(), ang.cos()), dim=-1)


def encode(p, blocks, x: Tensor, k: int) -> Tensor:
    h = torch.einsum("dc,btc->btd", p["embed_w"], x) + p["embed_b"]
    h = h + sincos(h.shape[1], h.shape[2], h)
    h = reduce(partial(block, k=k), blocks, h)
    h = layer_norm(h, p["ln_w"], p["ln_b"]).mean(dim=1)
    return h @ p["head_w"].T + p["head_b"]


# ---- parameters -----------------------------------------------------------------------------------------------------

def N(*shape, std=0.2, mean=0.0):
    return nn.Parameter(mean + std * torch.randn(*shape))


def init_block(d, f, e, heads, l_in, l_out):
    return nn.ParameterDict(dict(
        ln1_w=N(d, mean=1.0), ln1_b=N(d), ln2_w=N(d, mean=1.0), ln2_b=N(d),
        wqkv=N(3, heads, d // heads, d, std=d ** -0.5), wo=N(heads, d // heads, d, std=d ** -0.5),
        wg=N(e, d, std=0.3), bg=N(e, std=0.3),
        w_up=N(f, d, std=d ** -0.5), b_up=N(f), w_down=N(d, f, std=f ** -0.5), b_down=N(d),
        theta=N(e, l_in, d // 2, std=0.5), phi=N(e, l_out, f // 2, std=0.5),
    ))


class Encoder(nn.Module):
    def __init__(self, c=12, d=32, f=64, experts=6, k=2, heads=4, depth=3, l_in=5, l_out=3, classes=7):
        super().__init__()
        self.k = k
        self.p = nn.ParameterDict(dict(
            embed_w=N(d, c, std=c ** -0.5), embed_b=N(d), ln_w=N(d, mean=1.0), ln_b=N(d),
            head_w=N(classes, d, std=d ** -0.5), head_b=N(classes),
        ))
        self.blocks = nn.ModuleList(init_block(d, f, experts, heads, l_in, l_out) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        return encode(self.p, self.blocks, x, self.k)


def make():
    torch.manual_seed(7)
    return Encoder().eval(), (torch.randn(2, 20, 12),)
