"""Butterfly-MoE encoder, ported from my JAX habits.

* parameters live in one flat "pytree" (a ParameterDict), the model is pure functions `f(params, x)`;
* the MoE layer is written for ONE token (top-k, gather the angles, eq. 3) and lifted with `torch.vmap`
  over experts and over tokens;
* linear form, equation 3:  B(phi_i) . W_hat . B(theta_i)^T x,  no W_down; a block uses two such layers (up, GELU, down),
  each with its own router, so the same layer serves d -> F and F -> d;
* butterflies are FFT style (stride doubling, no shuffle), widths 24 and 48 padded to 32 and 64;
* gates: top-k, then softmax; ternary weights per output row, `w + stop_gradient(q - w)` everywhere.
"""
import functools
import math
from typing import Dict, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

Params = Dict[str, torch.Tensor]


class Hparams(NamedTuple):
    feat: int = 10
    d: int = 24
    ff: int = 48
    heads: int = 4
    experts: int = 6
    k: int = 2
    layers_in: int = 5     # butterfly layers, theta side
    layers_out: int = 4    # butterfly layers, phi side
    depth: int = 2
    tokens: int = 18
    classes: int = 7


def next_pow2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def stop_gradient(x):
    return x.detach()


def ternarize(w):
    gamma = torch.mean(torch.abs(w), dim=-1, keepdim=True)
    q = gamma * torch.clip(torch.round(w / (gamma + 1e-8)), -1.0, 1.0)
    return w + stop_gradient(q - w)


# ------------------------------------------------------------------ butterflies, one vector at a time

def givens_stage(x, angle, stride):
    """Rotate all pairs (i, i + stride) of a vector of length 2**m."""
    x = x.reshape(-1, 2, stride)
    c = torch.cos(angle).reshape(-1, stride)
    s = torch.sin(angle).reshape(-1, stride)
    lo, hi = x[:, 0], x[:, 1]
    return torch.stack([c * lo - s * hi, s * lo + c * hi], dim=1).reshape(-1)


def butterfly(angles, x):
    n = x.shape[-1]
    x = F.pad(x, (0, 2 * angles.shape[-1] - n))
    stage = lambda h, l: givens_stage(h, angles[l], 2 ** l)
    return functools.reduce(stage, range(angles.shape[0]), x)[:n]


def butterfly_t(angles, x):
    """Transpose: the stages backwards, each with the opposite angle."""
    n = x.shape[-1]
    x = F.pad(x, (0, 2 * angles.shape[-1] - n))
    stage = lambda h, l: givens_stage(h, -angles[l], 2 ** l)
    return functools.reduce(stage, reversed(range(angles.shape[0])), x)[:n]


# ------------------------------------------------------------------ mixture layer

def expert_fn(w_hat, x, theta, phi):
    return butterfly(phi, w_hat @ butterfly_t(theta, x))


def moe_token(p: Params, w_hat, k: int, x):
    logits = p["router"] @ x
    top, idx = torch.topk(logits, k)
    gates = torch.softmax(top, dim=-1)
    ys = torch.vmap(functools.partial(expert_fn, w_hat, x))(p["theta"][idx], p["phi"][idx])   # (k, out)
    return torch.einsum("k,ko->o", gates, ys)


def moe(p: Params, x, k: int):
    w_hat = ternarize(p["w"])
    per_token = functools.partial(moe_token, p, w_hat, k)
    return torch.vmap(torch.vmap(per_token))(x) + p["b"]


# ------------------------------------------------------------------ the rest of the encoder

def layer_norm(p: Params, x, eps=1e-6):
    mu = x.mean(-1, keepdim=True)
    var = ((x - mu) ** 2).mean(-1, keepdim=True)
    return (x - mu) * torch.rsqrt(var + eps) * p["scale"] + p["offset"]


def attention(p: Params, x, heads: int):
    q, k, v = (torch.einsum("btd,dhc->bhtc", x, p[n]) for n in ("q", "k", "v"))
    a = torch.softmax(torch.einsum("bhtc,bhsc->bhts", q, k) / math.sqrt(q.shape[-1]), dim=-1)
    return torch.einsum("bhts,bhsc,hcd->btd", a, v, p["o"])


def sub(p: Params, prefix: str) -> Params:
    prefix = prefix + "/"
    return {k[len(prefix):]: v for k, v in p.items() if k.startswith(prefix)}


def block(hp: Hparams, p: Params, x):
    x = x + attention(sub(p, "attn"), layer_norm(sub(p, "ln1"), x), hp.heads)
    h = moe(sub(p, "up"), layer_norm(sub(p, "ln2"), x), hp.k)
    h = F.gelu(h)
    return x + moe(sub(p, "down"), h, hp.k)


def apply(hp: Hparams, params: Params, feats):
    x = torch.einsum("btf,fd->btd", feats, params["embed/w"]) + params["embed/pos"]
    stacked = sub(params, "blocks")                      # leading axis = depth, as for lax.scan
    for i in range(hp.depth):
        x = block(hp, {k: v[i] for k, v in stacked.items()}, x)
    x = layer_norm(sub(params, "ln_f"), x)
    return x.mean(1) @ params["head/w"] + params["head/b"]


def init(seed: int, hp: Hparams) -> Params:
    torch.manual_seed(seed)
    n = torch.randn
    L, d, f, E, c = hp.depth, hp.d, hp.ff, hp.experts, hp.d // hp.heads

    def moe_params(name, n_in, n_out):
        return {
            f"blocks/{name}/router": n(L, E, n_in) / math.sqrt(n_in) * 1.5,
            f"blocks/{name}/w": n(L, n_out, n_in) / math.sqrt(n_in),
            f"blocks/{name}/b": 0.2 * n(L, n_out),
            f"blocks/{name}/theta": 0.5 * n(L, E, hp.layers_in, next_pow2(n_in) // 2),
            f"blocks/{name}/phi": 0.5 * n(L, E, hp.layers_out, next_pow2(n_out) // 2),
        }

    def ln(name, *lead):
        return {f"{name}/scale": 1 + 0.25 * n(*lead, d), f"{name}/offset": 0.15 * n(*lead, d)}

    p = {"embed/w": n(hp.feat, d) / math.sqrt(hp.feat), "embed/pos": 0.3 * n(hp.tokens, d)}
    p |= {f"blocks/attn/{m}": n(L, d, hp.heads, c) / math.sqrt(d) for m in "qkv"}
    p |= {"blocks/attn/o": n(L, hp.heads, c, d) / math.sqrt(d)}
    p |= ln("blocks/ln1", L) | ln("blocks/ln2", L) | ln("ln_f")
    p |= moe_params("up", d, f) | moe_params("down", f, d)
    p |= {"head/w": n(d, hp.classes) / math.sqrt(d), "head/b": 0.2 * n(hp.classes)}
    return p


class Bound(nn.Module):
    """Torch wants a Module: bind a parameter tree to the pure function."""

    def __init__(self, hp: Hparams, params: Params):
        super().__init__()
        self.hp = hp
        self.params = nn.ParameterDict(params)

    def forward(self, feats):
        return apply(self.hp, dict(self.params.items()), feats)


def make():
    hp = Hparams()
    model = Bound(hp, init(42, hp)).eval()
    return model, (torch.randn(2, hp.tokens, hp.feat),)


if __name__ == "__main__":
    m, x = make()
    print(m(*x))
