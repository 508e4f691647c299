"""Functional encoder for feature sequences: pure functions over stacked parameters, torch.func.vmap over experts.

All experts run densely on all tokens; a (token, expert) combine matrix (softmax over all, keep the top 3, no renormalisation)
contracts them with einsum. A Givens layer is a stack of 2x2 matrices applied by einsum; the shuffle is a reshape/transpose
(interleave) done BEFORE the rotation (eq. 4 order). Input side is the true transpose B(theta)^T: layers reversed, matrices
transposed, inverse shuffle last. Output side plain B(phi), applied BEFORE the erf GELU. W_hat and W_down both ternary with
per-tensor gamma; b_up inside, b_down added once, ungated. Depth is folded with functools.reduce; L_in 3, L_out 4.
"""
import functools
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.func import vmap


# ---------------------------------------------------------------- pure functions
def givens(angles: Tensor) -> Tensor:
    """(..., n/2) -> (..., n/2, 2, 2)"""
    c, s = torch.cos(angles), torch.sin(angles)
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)


def shuffle(x: Tensor) -> Tensor:
    n = x.shape[-1]
    return x.unflatten(-1, (2, n // 2)).transpose(-1, -2).flatten(-2)


def unshuffle(x: Tensor) -> Tensor:
    n = x.shape[-1]
    return x.unflatten(-1, (n // 2, 2)).transpose(-1, -2).flatten(-2)


def layer_fwd(x: Tensor, rot: Tensor) -> Tensor:
    pairs = shuffle(x).unflatten(-1, (-1, 2))
    return torch.einsum("jab,...jb->...ja", rot, pairs).flatten(-2)


def layer_bwd(x: Tensor, rot: Tensor) -> Tensor:
    pairs = x.unflatten(-1, (-1, 2))
    return unshuffle(torch.einsum("jba,...jb->...ja", rot, pairs).flatten(-2))


def butterfly(angles: Tensor, x: Tensor) -> Tensor:
    return functools.reduce(layer_fwd, givens(angles).unbind(0), x)


def butterfly_t(angles: Tensor, x: Tensor) -> Tensor:
    return functools.reduce(layer_bwd, reversed(givens(angles).unbind(0)), x)


def ternarize(w: Tensor) -> Tensor:
    gamma = w.abs().mean()
    return gamma * (w / (gamma + 1e-8)).round().clamp(-1, 1)


class Shared(NamedTuple):
    w_hat: Tensor
    b_up: Tensor
    w_down: Tensor


def expert(theta: Tensor, phi: Tensor, shared: Shared, x: Tensor) -> Tensor:
    """one expert, one token: (d,) -> (d,)"""
    z = shared.w_hat @ butterfly_t(theta, x) + shared.b_up
    return shared.w_down @ torch.nn.functional.gelu(butterfly(phi, z))


per_token = vmap(expert, in_dims=(None, None, None, 0))
per_expert = vmap(per_token, in_dims=(0, 0, None, None))


def combine_weights(logits: Tensor, k: int) -> Tensor:
    p = logits.softmax(-1)
    val, idx = p.topk(k, dim=-1)
    return torch.zeros_like(p).scatter(-1, idx, val)


def attend(x: Tensor, wqkv: Tensor, wo: Tensor) -> Tensor:
    q, k, v = torch.einsum("bnd,chde->cbhne", x, wqkv)
    a = (torch.einsum("bhne,bhme->bhnm", q, k) * q.shape[-1] ** -0.5).softmax(-1)
    return torch.einsum("bhnm,bhme,hed->bnd", a, v, wo)


def layer_norm(x: Tensor, g: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], g, b, 1e-5)


# ---------------------------------------------------------------- parameters, stacked over depth
class Encoder(nn.Module):
    def __init__(self, c_in=7, d=16, f=64, e=6, k=3, depth=2, heads=2, l_in=3, l_out=4, n_out=5):
        super().__init__()
        self.k, self.depth = k, depth
        p = lambda *shape, std, mean=0.0: nn.Parameter(mean + std * torch.randn(*shape))
        self.embed = p(c_in, d, std=c_in ** -0.5)
        self.ln = p(depth, 2, d, std=0.2, mean=1.0)
        self.ln_b = p(depth, 2, d, std=0.1)
        self.wqkv = p(depth, 3, heads, d, d // heads, std=d ** -0.5)
        self.wo = p(depth, heads, d // heads, d, std=d ** -0.5)
        self.router = p(depth, e, d, std=0.4)
        self.router_b = p(depth, e, std=0.3)
        self.theta = p(depth, e, l_in, d // 2, std=0.5)
        self.phi = p(depth, e, l_out, f // 2, std=0.5)
        self.w_up = p(depth, f, d, std=d ** -0.5)
        self.b_up = p(depth, f, std=0.2)
        self.w_down = p(depth, d, f, std=1.5 * f ** -0.5)
        self.b_down = p(depth, d, std=0.2)
        self.head = p(d, n_out, std=d ** -0.5)

    def moe(self, l: int, x: Tensor) -> Tensor:
        t = x.flatten(0, 1)
        shared = Shared(ternarize(self.w_up[l]), self.b_up[l], ternarize(self.w_down[l]))
        out = per_expert(self.theta[l], self.phi[l], shared, t)                       # (e, t, d)
        logits = torch.einsum("td,ed->te", t, self.router[l]) + self.router_b[l]
        y = torch.einsum("te,etd->td", combine_weights(logits, self.k), out) + self.b_down[l]
        return y.view_as(x)

    def forward(self, feats: Tensor) -> Tensor:
        x = feats @ self.embed
        for l in range(self.depth):
            x = x + attend(layer_norm(x, self.ln[l, 0], self.ln_b[l, 0]), self.wqkv[l], self.wo[l])
            x = x + self.moe(l, layer_norm(x, self.ln[l, 1], self.ln_b[l, 1]))
        return x @ self.head


def make():
    torch.manual_seed(7)
    net = Encoder().eval()
    return net, (torch.randn(3, 12, 7),)
