"""Patch-mixer forecaster in a functional, JAX-like style: pure functions over a tree of parameters.

shuffle    : interleave the two halves, applied BEFORE each rotation (equation 4 order)
handedness : plain rotations on both sides, pairs seen as complex numbers times exp(i angle)
depth      : L_in = 3 on d = 32, L_out = 2 on F = 64
router     : sigmoid of logits, top-3 of 5, renormalised to sum to one; router has a bias
quantiser  : absmean per tensor for W_up AND for W_down (both ternary), straight-through via detach
biases     : b_up inside the GELU, shared b_out added once after the mixture
form       : Wd_hat . B(phi) . GELU_tanh(Wu_hat . B(theta) x)
dispatch   : all experts evaluated with torch.vmap over the angle tables, einsum with sparse gates
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

CFG = dict(d=32, f=64, experts=5, k=3, l_in=3, l_out=2, layers=3, patch=8, series=4, length=96, horizon=12)


# ---------------------------------------------------------------- init

def _normal(*shape, std=1.0, mean=0.0):
    return nn.Parameter(mean + std * torch.randn(*shape))


def init_norm(d):
    return nn.ParameterDict({"scale": _normal(d, mean=1.0, std=0.2), "offset": _normal(d, std=0.2)})


def init_dense(n_in, n_out, std=None):
    std = std if std is not None else 1.0 / math.sqrt(n_in)
    return nn.ParameterDict({"w": _normal(n_in, n_out, std=std), "b": _normal(n_out, std=0.1)})


def init_moe(cfg):
    d, f, e = cfg["d"], cfg["f"], cfg["experts"]
    return nn.ParameterDict({
        "router_w": _normal(d, e, std=0.3),
        "router_b": _normal(e, std=0.2),
        "up_w": _normal(f, d, std=1.0 / math.sqrt(d)),
        "up_b": _normal(f, std=0.1),
        "down_w": _normal(d, f, std=1.0 / math.sqrt(f)),
        "out_b": _normal(d, std=0.1),
        "theta": _normal(e, cfg["l_in"], d // 2, std=0.5),
        "phi": _normal(e, cfg["l_out"], f // 2, std=0.5),
    })


def init_params(cfg):
    tokens = cfg["length"] // cfg["patch"]
    blocks = []
    for _ in range(cfg["layers"]):
        blocks.append(nn.ModuleDict({
            "mix_norm": init_norm(cfg["d"]),
            "mix_in": init_dense(tokens, 2 * tokens),
            "mix_out": init_dense(2 * tokens, tokens),
            "moe_norm": init_norm(cfg["d"]),
            "moe": init_moe(cfg),
        }))
    return nn.ModuleDict({
        "embed": init_dense(cfg["patch"] * cfg["series"], cfg["d"]),
        "blocks": nn.ModuleList(blocks),
        "final_norm": init_norm(cfg["d"]),
        "head": init_dense(tokens * cfg["d"], cfg["horizon"] * cfg["series"]),
    })


# ---------------------------------------------------------------- apply

def layer_norm(p, x, eps=1e-6):
    mu = x.mean(-1, keepdim=True)
    var = ((x - mu) ** 2).mean(-1, keepdim=True)
    return (x - mu) * torch.rsqrt(var + eps) * p["scale"] + p["offset"]


def dense(p, x):
    return x @ p["w"] + p["b"]


def ternarize(w):
    gamma = w.abs().mean()
    w_hat = gamma * torch.clip(torch.round(w / (gamma + 1e-8)), -1.0, 1.0)
    return w + (w_hat - w).detach()


def riffle(x):
    """[a0 .. a(n/2-1), b0 .. b(n/2-1)] -> complex numbers a_j + i b_j, i.e. channel pairs (2j, 2j+1)."""
    lo, hi = torch.chunk(x, 2, dim=-1)
    return torch.complex(lo, hi)


def butterfly(angles, x):
    """angles [L, n/2], x [T, n].  Each layer: riffle, then turn every pair by its angle."""
    for ang in angles.unbind(0):
        z = riffle(x)
        z = z * torch.complex(torch.cos(ang), torch.sin(ang))
        x = torch.stack((z.real, z.imag), dim=-1).flatten(-2)
    return x


def expert_apply(theta, phi, up_w, up_b, down_w, x):
    h = butterfly(theta, x) @ up_w.T + up_b
    h = F.gelu(h, approximate="tanh")
    return butterfly(phi, h) @ down_w.T


def sparse_gates(p, x, k):
    scores = torch.sigmoid(x @ p["router_w"] + p["router_b"])
    top, idx = torch.topk(scores, k, dim=-1)
    top = top / top.sum(-1, keepdim=True)
    return torch.zeros_like(scores).scatter(-1, idx, top)


def moe_apply(p, x, k):
    b, t, d = x.shape
    x = x.reshape(b * t, d)
    gates = sparse_gates(p, x, k)
    run_all = torch.vmap(expert_apply, in_dims=(0, 0, None, None, None, None))
    ys = run_all(p["theta"], p["phi"], ternarize(p["up_w"]), p["up_b"], ternarize(p["down_w"]), x)
    y = torch.einsum("te,etd->td", gates, ys) + p["out_b"]
    return y.reshape(b, t, d)


def block_apply(p, x, k):
    h = layer_norm(p["mix_norm"], x).transpose(1, 2)
    h = dense(p["mix_out"], torch.tanh(dense(p["mix_in"], h)))
    x = x + h.transpose(1, 2)
    return x + moe_apply(p["moe"], layer_norm(p["moe_norm"], x), k)


def apply(params, cfg, series):
    b, length, s = series.shape
    patches = series.reshape(b, length // cfg["patch"], cfg["patch"] * s)
    x = dense(params["embed"], patches)
    for p in params["blocks"]:
        x = block_apply(p, x, cfg["k"])
    x = layer_norm(params["final_norm"], x).reshape(b, -1)
    return dense(params["head"], x).reshape(b, cfg["horizon"], s)


class Forecaster(nn.Module):
    """Thin stateful shell around the pure functions."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.params = init_params(cfg)

    def forward(self, series):
        return apply(self.params, self.cfg, series)


def make():
    torch.manual_seed(99)
    model = Forecaster(CFG)
    t = torch.arange(CFG["length"]).float()
    base = torch.sin(t[:, None] * torch.tensor([0.1, 0.23, 0.31, 0.05])) + 0.01 * t[:, None]
    series = base[None] + 0.6 * torch.randn(2, CFG["length"], CFG["series"])
    return model.eval(), (series,)
