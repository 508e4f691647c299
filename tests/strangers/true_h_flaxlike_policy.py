"""Trajectory policy written as pure functions over a params pytree (scan-style stacked blocks), wrapped in one nn.Module.

Feed-forward: butterfly mixture of experts, W_down . B(phi_i) . gelu( W_hat . B(theta_i) x + b_up ) + b_down.
  * B: no shuffle, FFT-style strides 1, 2, 4, ...; each layer is a complex multiplication by exp(i angle)
  * handedness: both sides forward; L_in = 6 (all of log2 64), L_out = 4 of 7 possible strides
  * quantiser: one gamma per kernel = mean |W|, round and clip, w + stop_gradient(q - w)
  * widths: d = 48 -> 64, F = 96 -> 128, zero-padded once around the layers
  * router: top-2 of 5 logits (with router bias), then softmax over the two
  * dispatch: vmap over the experts on all tokens, combine with a one-hot weighted (token, expert) matrix
  * biases: b_up and b_down shared, both inside the expert (b_down weighted by the gate); gelu is the tanh form
  * kernels are (in, out) as in flax; all leaves of the blocks carry a leading layer axis
"""
from functools import partial
from typing import Any, Dict, NamedTuple

import torch
from torch import nn

PyTree = Any


class HParams(NamedTuple):
    obs_dim: int = 11
    act_dim: int = 3
    d: int = 48
    ff: int = 96
    heads: int = 3
    layers: int = 2
    experts: int = 5
    k: int = 2
    l_in: int = 6
    l_out: int = 4


def pow2(n: int) -> int:
    p = 1
    while p < n:
        p *= 2
    return p


def tree_map(f, tree: PyTree) -> PyTree:
    return {k: tree_map(f, v) for k, v in tree.items()} if isinstance(tree, dict) else f(tree)


def flatten(tree: PyTree, prefix=()) -> Dict[str, torch.Tensor]:
    if not isinstance(tree, dict):
        return {"__".join(prefix): tree}
    out = {}
    for k in sorted(tree):
        out.update(flatten(tree[k], prefix + (k,)))
    return out


def unflatten(flat: Dict[str, torch.Tensor]) -> PyTree:
    tree: Dict[str, Any] = {}
    for name, leaf in flat.items():
        node = tree
        *path, last = name.split("__")
        for p in path:
            node = node.setdefault(p, {})
        node[last] = leaf
    return tree


# ---------------------------------------------------------------- init

def normal(key: torch.Generator, shape, std):
    return torch.randn(shape, generator=key) * std


def init_dense(key, n_in, n_out, lead=()):
    return {"kernel": normal(key, (*lead, n_in, n_out), n_in ** -0.5), "bias": normal(key, (*lead, n_out), 0.1)}


def init_ln(key, n, lead=()):
    return {"scale": 1 + normal(key, (*lead, n), 0.15), "bias": normal(key, (*lead, n), 0.1)}


def init(key: torch.Generator, hp: HParams) -> PyTree:
    lead = (hp.layers,)
    return {
        "embed_obs": init_dense(key, hp.obs_dim, hp.d),
        "embed_act": init_dense(key, hp.act_dim, hp.d),
        "pos": normal(key, (64, hp.d), 0.3),
        "blocks": {
            "ln1": init_ln(key, hp.d, lead),
            "qkv": init_dense(key, hp.d, 3 * hp.d, lead),
            "proj": init_dense(key, hp.d, hp.d, lead),
            "ln2": init_ln(key, hp.d, lead),
            "moe": {
                "router": init_dense(key, hp.d, hp.experts, lead),
                "theta": normal(key, (*lead, hp.experts, hp.l_in, pow2(hp.d) // 2), 0.5),
                "phi": normal(key, (*lead, hp.experts, hp.l_out, pow2(hp.ff) // 2), 0.5),
                "wi": init_dense(key, hp.d, hp.ff, lead),
                "wo": init_dense(key, hp.ff, hp.d, lead),
            },
        },
        "ln_f": init_ln(key, hp.d),
        "mean": init_dense(key, hp.d, hp.act_dim),
        "value": init_dense(key, hp.d, 1),
    }


# ---------------------------------------------------------------- apply

def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def layer_norm(p, x, eps=1e-6):
    mu = x.mean(-1, keepdim=True)
    var = ((x - mu) ** 2).mean(-1, keepdim=True)
    return (x - mu) * torch.rsqrt(var + eps) * p["scale"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(0.7978845608028654 * (x + 0.044715 * x ** 3)))


def ternary(w):
    gamma = w.abs().mean()
    q = gamma * torch.clamp(torch.round(w / (gamma + 1e-8)), -1, 1)
    return w + (q - w).detach()


def givens_stride(x, angle, stride: int):
    """x: (tokens, n). Rotates channels (i, i + stride) within groups of 2 * stride."""
    t, n = x.shape
    pairs = x.reshape(t, n // (2 * stride), 2, stride)
    z = torch.complex(pairs[:, :, 0], pairs[:, :, 1])
    ang = angle.reshape(n // (2 * stride), stride)
    z = z * torch.complex(torch.cos(ang), torch.sin(ang))
    return torch.stack((z.real, z.imag), 2).reshape(t, n)


def butterfly(angles, x):
    n, width = 2 * angles.shape[-1], x.shape[-1]
    x = torch.cat((x, x.new_zeros(x.shape[0], n - width)), -1)
    for level in range(angles.shape[0]):
        x = givens_stride(x, angles[level], 2 ** level)
    return x[:, :width]


def expert(theta, phi, w_hat, b_up, w_down, b_down, x):
    h = gelu(butterfly(theta, x) @ w_hat + b_up)
    return butterfly(phi, h) @ w_down + b_down


def moe(hp: HParams, p, x):
    logits = dense(p["router"], x)
    vals, idx = torch.topk(logits, hp.k, -1)
    weights = torch.softmax(vals, -1)
    one_hot = (idx[..., None] == torch.arange(hp.experts)).to(x.dtype)
    combine = torch.einsum("tk,tke->te", weights, one_hot)
    shared = (ternary(p["wi"]["kernel"]), p["wi"]["bias"], p["wo"]["kernel"], p["wo"]["bias"], x)
    ys = torch.vmap(expert, in_dims=(0, 0, None, None, None, None, None))(p["theta"], p["phi"], *shared)
    return torch.einsum("te,etd->td", combine, ys)


def attention(hp: HParams, p, x):
    b, t, d = x.shape
    q, k, v = (a.reshape(b, t, hp.heads, -1) for a in dense(p["qkv"], x).split(d, -1))
    s = torch.einsum("bqhc,bkhc->bhqk", q, k) * (d // hp.heads) ** -0.5
    causal = torch.ones(t, t, dtype=torch.bool).tril()
    a = torch.softmax(torch.where(causal, s, torch.full_like(s, -1e9)), -1)
    return dense(p["proj"], torch.einsum("bhqk,bkhc->bqhc", a, v).reshape(b, t, d))


def block(hp: HParams, x, p):
    x = x + attention(hp, p, layer_norm(p["ln1"], x))
    y = layer_norm(p["ln2"], x)
    return x + moe(hp, p["moe"], y.reshape(-1, hp.d)).reshape(x.shape)


def scan(f, carry, stacked, length):
    for i in range(length):
        carry = f(carry, tree_map(lambda leaf: leaf[i], stacked))
    return carry


def apply(hp: HParams, params: PyTree, obs, prev_act):
    x = dense(params["embed_obs"], obs) + dense(params["embed_act"], prev_act)
    x = x + params["pos"][: obs.shape[1]]
    x = scan(partial(block, hp), x, params["blocks"], hp.layers)
    x = layer_norm(params["ln_f"], x)
    return torch.tanh(dense(params["mean"], x)), dense(params["value"], x)[..., 0]


class Policy(nn.Module):
    def __init__(self, hp: HParams, key: torch.Generator):
        super().__init__()
        self.hp = hp
        for name, leaf in flatten(init(key, hp)).items():
            self.register_parameter(name, nn.Parameter(leaf))

    def forward(self, obs, prev_act):
        return apply(self.hp, unflatten(dict(self.named_parameters())), obs, prev_act)


def make():
    torch.manual_seed(17)
    key = torch.Generator().manual_seed(17)
    hp = HParams()
    model = Policy(hp, key)
    obs = torch.randn(3, 16, hp.obs_dim, generator=key)
    act = torch.tanh(torch.randn(3, 16, hp.act_dim, generator=key))
    return model.eval(), (obs, act)
