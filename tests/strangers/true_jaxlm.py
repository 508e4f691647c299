"""Butterfly-MoE causal language model, written by someone who came over from JAX.

Style: pure functions over a flat dict of arrays stacked along a leading layer axis (as for lax.scan), einsum everywhere,
a Givens rotation is a (P, 2, 2) matrix applied with einsum, the shuffle is a reshape/transpose (interleave, after the
rotation), zero padding 48 -> 64 and 96 -> 128.  Experts are torch.vmap-ed over their angles and all of them see all
tokens; a dense [token, expert] combine matrix does the rest.  Router: softmax over all experts, keep the top-k, not
renormalised.  Expert = W_down . gelu_tanh(B(phi) . W_hat . B(theta) x + b_up), both matrices ternary with one gamma per row,
b_up shared by the experts, the down bias added once after the combine.  RMSNorm, tied embedding.
"""
import dataclasses
import functools
import math
from typing import Dict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Params = Dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Hyper:
    vocab: int = 61
    ctx: int = 18
    d: int = 48
    f: int = 96
    heads: int = 4
    experts: int = 6
    topk: int = 2
    depth_in: int = 3
    depth_out: int = 2
    layers: int = 2


def next_pow2(n: int) -> int:
    return 1 << (n - 1).bit_length()


# ---------------------------------------------------------------- pure functions

def rms_norm(x, scale, eps=1e-6):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * scale


def stop_gradient(x):
    return x.detach()


def ternarize(w):
    gamma = mean_abs(w)
    q = gamma * torch.round(w / (gamma + 1e-8)).clamp(-1.0, 1.0)
    return w + stop_gradient(q - w)


def mean_abs(w):
    return w.abs().mean(axis=-1, keepdims=True)


def givens(angles):
    """(P,) -> (P, 2, 2)"""
    c, s = torch.cos(angles), torch.sin(angles)
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)


def butterfly_step(x, angles):
    t, n = x.shape
    x = torch.einsum("tpj,pij->tpi", x.reshape(t, n // 2, 2), givens(angles))
    # perfect (riffle) shuffle: first half and second half of the deck are interleaved
    return x.reshape(t, 2, n // 2).swapaxes(1, 2).reshape(t, n)


def butterfly(x, angles):
    """x: (T, n), angles: (L, P)"""
    n, width = x.shape[-1], 2 * angles.shape[-1]
    carry = F.pad(x, (0, width - n))
    carry = functools.reduce(butterfly_step, angles.unbind(0), carry)
    return carry[:, :n]


def expert(x, w_up, b_up, w_down, theta, phi):
    h = torch.einsum("td,fd->tf", butterfly(x, theta), w_up)
    h = F.gelu(butterfly(h, phi) + b_up, approximate="tanh")  # jax.nn.gelu default
    return torch.einsum("tf,df->td", h, w_down)


experts = torch.vmap(expert, in_dims=(None, None, None, None, 0, 0), out_dims=0)


def moe(p: Params, x, k):
    b, t, d = x.shape
    tok = x.reshape(b * t, d)
    probs = torch.softmax(torch.einsum("td,de->te", tok, p["router"]), axis=-1)
    _, idx = torch.topk(probs, k, dim=-1)
    keep = F.one_hot(idx, probs.shape[-1]).sum(-2).to(probs.dtype)
    combine = probs * keep
    ys = experts(tok, ternarize(p["w_up"]), p["b_up"], ternarize(p["w_down"]), p["theta"], p["phi"])  # (E, T, d)
    y = torch.einsum("te,etd->td", combine, ys) + p["b_down"]
    return y.reshape(b, t, d)


def attention(p: Params, x, heads):
    b, t, d = x.shape
    q, k, v = torch.einsum("btd,cdhk->cbhtk", x, p["qkv"])
    logits = torch.einsum("bhtk,bhsk->bhts", q, k) / math.sqrt(d // heads)
    causal = torch.tril(torch.ones(t, t, dtype=torch.bool, device=x.device))
    logits = torch.where(causal, logits, torch.finfo(logits.dtype).min)
    out = torch.einsum("bhts,bhsk->bthk", torch.softmax(logits, -1), v)
    return torch.einsum("bthk,hkd->btd", out, p["proj"])


def block(x, p: Params, hp: Hyper):
    x = x + attention(p, rms_norm(x, p["ln1"]), hp.heads)
    return x + moe(p, rms_norm(x, p["ln2"]), hp.topk)


def tree_slice(tree: Params, i: int) -> Params:
    return {k: v[i] for k, v in tree.items()}


def apply(top: Params, stacked: Params, ids, hp: Hyper):
    x = top["wte"][ids] + top["wpe"][: ids.shape[1]]
    for i in range(hp.layers):
        x = block(x, tree_slice(stacked, i), hp)
    return torch.einsum("btd,vd->btv", rms_norm(x, top["ln_f"]), top["wte"])


# ---------------------------------------------------------------- parameters

def init(hp: Hyper):
    n, hd = hp.layers, hp.d // hp.heads

    def normal(*shape, std):
        return torch.randn(*shape) * std

    top = dict(
        wte=normal(hp.vocab, hp.d, std=0.5),
        wpe=normal(hp.ctx, hp.d, std=0.3),
        ln_f=1 + normal(hp.d, std=0.2),
    )
    stacked = dict(
        ln1=1 + normal(n, hp.d, std=0.2),
        ln2=1 + normal(n, hp.d, std=0.2),
        qkv=normal(n, 3, hp.d, hp.heads, hd, std=hp.d**-0.5),
        proj=normal(n, hp.heads, hd, hp.d, std=hp.d**-0.5),
        router=normal(n, hp.d, hp.experts, std=0.3),
        w_up=normal(n, hp.f, hp.d, std=0.15),
        b_up=normal(n, hp.f, std=0.2),
        w_down=normal(n, hp.d, hp.f, std=0.12),
        b_down=normal(n, hp.d, std=0.1),
        theta=normal(n, hp.experts, hp.depth_in, next_pow2(hp.d) // 2, std=0.5),
        phi=normal(n, hp.experts, hp.depth_out, next_pow2(hp.f) // 2, std=0.5),
    )
    return top, stacked


class Transformed(nn.Module):
    """Thin stateful shell, only so that .double() / .to() / state_dict() work."""

    def __init__(self, hp: Hyper):
        super().__init__()
        self.hp = hp
        top, stacked = init(hp)
        self.top = nn.ParameterDict(top)
        self.stacked = nn.ParameterDict(stacked)

    def forward(self, ids):
        return apply(dict(self.top.items()), dict(self.stacked.items()), ids, self.hp)


def make():
    torch.manual_seed(7)
    hp = Hyper()
    return Transformed(hp).eval(), (torch.randint(0, hp.vocab, (2, hp.ctx)),)
