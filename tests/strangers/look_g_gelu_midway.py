"""Policy and value network over a set of entities, by someone coming from JAX: pure functions, one dict of parameters, vmap.

Shuffle:     none, pairs at distance 1, 2, 4, ... by reshaping.  L_in = 4 (= log2 d), L_out = 3.  d = 16, F = 64.
Handedness:  B(theta) in, B(phi) out, none transposed.
Router:      sigmoid of every logit, top-3 of 9, divided by their sum.
Quantiser:   none at run time: W_hat comes ternary from the checkpoint as a float array with a scale of its own; W_down is float.
Biases:      hidden bias shared by the experts (right after W_hat), output bias once after the weighted sum.
Dispatch:    vmap over experts, everything is computed, one-hot combine weights.
Not a Butterfly layer: the erf GELU stands neither before nor after B(phi) but inside it, after the first of its three stages:
W_down . R_2 R_1 . GELU(R_0 . (W_hat . B(theta) x + b)).  R_0 mixes channels before the non-linearity and R_1, R_2 after it.
"""
from functools import partial, reduce
from typing import Dict, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

Params = Dict[str, torch.Tensor]


def scope(params: Params, name: str) -> Params:
    prefix = name + "/"
    return {k[len(prefix):]: v for k, v in params.items() if k.startswith(prefix)}


def dense(p: Params, x):
    return x @ p["w"] + p["b"]


def layer_norm(p: Params, x):
    x = x - x.mean(-1, keepdim=True)
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * p["scale"] + p["offset"]


def givens_stage(x, stage: Tuple[int, torch.Tensor]):
    """rotate channels c and c + stride of every block of 2 * stride"""
    stride, angle = stage
    blocks = x.reshape(*x.shape[:-1], -1, 2, stride)
    angle = angle.reshape(-1, stride)
    lo, hi = blocks[..., 0, :], blocks[..., 1, :]
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([cos * lo - sin * hi, sin * lo + cos * hi], dim=-2).reshape(x.shape)


def stages(angles):
    return [(2**s, angles[s]) for s in range(angles.shape[0])]


def expert_fn(theta, phi, shared: Params, x):
    h = reduce(givens_stage, stages(theta), x)
    h = (h @ shared["w_hat"].T) * shared["w_hat_scale"] + shared["b_hidden"]
    head, *tail = stages(phi)
    h = F.gelu(givens_stage(h, head))
    return reduce(givens_stage, tail, h) @ shared["w_down"]


def top_k_weights(logits, k: int):
    score, idx = torch.topk(torch.sigmoid(logits), k, dim=-1)
    score = score / score.sum(-1, keepdim=True)
    one_hot = F.one_hot(idx, logits.shape[-1]).to(score.dtype)
    return (score[..., None] * one_hot).sum(-2)  # [..., E]


def moe(p: Params, x, k: int = 3):
    combine = top_k_weights(dense(scope(p, "router"), x), k)
    every = torch.vmap(partial(expert_fn, shared=p, x=x))(p["theta"], p["phi"])  # [E, B, N, d]
    return torch.einsum("...e,e...d->...d", combine, every) + p["b_out"]


def attention(p: Params, x, heads: int = 2):
    b, n, d = x.shape
    q, k, v = (dense(scope(p, s), x).reshape(b, n, heads, d // heads) for s in ("q", "k", "v"))
    logits = torch.einsum("bnhc,bmhc->bhnm", q, k) * (d // heads) ** -0.5
    mixed = torch.einsum("bhnm,bmhc->bnhc", torch.softmax(logits, dim=-1), v)
    return dense(scope(p, "o"), mixed.reshape(b, n, d))


def apply(params: Params, obs, depth: int):
    x = dense(scope(params, "embed"), obs)
    for i in range(depth):
        p = scope(params, f"block{i}")
        x = x + attention(scope(p, "attn"), layer_norm(scope(p, "ln1"), x))
        x = x + moe(scope(p, "moe"), layer_norm(scope(p, "ln2"), x))
    x = layer_norm(scope(params, "ln_f"), x)
    logits = dense(scope(params, "policy"), x).flatten(1)
    value = torch.tanh(dense(scope(params, "value"), x.mean(dim=1)))
    return logits, value


def init(gen: torch.Generator, obs_dim: int, actions: int, d: int = 16, d_ff: int = 64, experts: int = 9, depth: int = 3) -> Params:
    normal = lambda *shape, std=1.0, mean=0.0: mean + std * torch.randn(*shape, generator=gen)
    params: Params = {}

    def add_dense(name, n_in, n_out, std=None):
        params[f"{name}/w"] = normal(n_in, n_out, std=n_in**-0.5 if std is None else std)
        params[f"{name}/b"] = normal(n_out, std=0.2)

    def add_norm(name):
        params[f"{name}/scale"] = normal(d, std=0.15, mean=1.0)
        params[f"{name}/offset"] = normal(d, std=0.15)

    add_dense("embed", obs_dim, d)
    for i in range(depth):
        b = f"block{i}"
        add_norm(f"{b}/ln1")
        add_norm(f"{b}/ln2")
        for s in ("q", "k", "v", "o"):
            add_dense(f"{b}/attn/{s}", d, d)
        add_dense(f"{b}/moe/router", d, experts, std=0.6)
        params[f"{b}/moe/theta"] = normal(experts, 4, d // 2, std=0.5)
        params[f"{b}/moe/phi"] = normal(experts, 3, d_ff // 2, std=0.5)
        w = normal(d_ff, d, std=d**-0.5)
        gamma = w.abs().mean()
        params[f"{b}/moe/w_hat"] = torch.clamp(torch.round(w / (gamma + 1e-8)), -1, 1)
        params[f"{b}/moe/w_hat_scale"] = gamma
        params[f"{b}/moe/b_hidden"] = normal(d_ff, std=0.2)
        params[f"{b}/moe/w_down"] = normal(d_ff, d, std=d_ff**-0.5)
        params[f"{b}/moe/b_out"] = normal(d, std=0.2)
    add_norm("ln_f")
    add_dense("policy", d, actions)
    add_dense("value", d, 1)
    return params


class Agent(nn.Module):
    """Holds the tree; ternary entries are buffers, everything else is a parameter."""

    FROZEN = ("w_hat", "w_hat_scale")

    def __init__(self, params: Params, depth: int):
        super().__init__()
        self.depth = depth
        for key, value in params.items():
            if key.rsplit("/", 1)[-1] in self.FROZEN:
                self.register_buffer(key, value)
            else:
                self.register_parameter(key, nn.Parameter(value))

    def tree(self) -> Params:
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def forward(self, obs):
        return apply(self.tree(), obs, self.depth)


def make():
    torch.manual_seed(12)
    gen = torch.Generator().manual_seed(1901)
    agent = Agent(init(gen, obs_dim=8, actions=4), depth=3)
    return agent.eval(), (torch.randn(2, 18, 8, generator=gen),)
