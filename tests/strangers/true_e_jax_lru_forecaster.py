"""Patched time-series forecaster: diagonal linear recurrence + butterfly experts, written as pure functions over a
parameter tree (the nn.Module only owns the leaves).

  shuffle     none: stride-doubling pairs, distance 1, 2, 4, ..., d/2, via precomputed partner / sign / slot tables
  handedness  B(theta)^T on the input side (layers reversed, angles negated), plain B(phi) on the output side
  depth       L_in = L_out = log2(64) = 6
  router      affine, top-3 of E = 8 on the logits, gates = sigmoid(logit) of the chosen ones, not renormalised
  quantiser   absmean round-clip ternary, one gamma per output row, stop_gradient straight-through
  form        eq. 3 square form: B(phi) . ( W_hat . B(theta)^T x + b ), no activation, no W_down (F = d = 64)
  biases      b right after W_hat, shared by all experts, so it passes B(phi) and the gate
  dispatch    dense: vmap over experts of vmap over tokens, one-hot weighted einsum; blocks and layers run under scan
"""
import math
from functools import partial

import torch
from torch import nn
from torch.utils import _pytree as pytree

vmap = torch.vmap
tree_map = pytree.tree_map


# ---- tiny lax ------------------------------------------------------------------------------------------------------

def stop_gradient(x):
    return x.detach()


def scan(f, init, xs, reverse=False):
    """carry, ys = scan(f, init, xs): xs is a pytree whose leaves are sliced along axis 0."""
    length = pytree.tree_leaves(xs)[0].shape[0]
    steps = range(length)
    carry, ys = init, [None] * length
    for i in reversed(steps) if reverse else steps:
        carry, ys[i] = f(carry, tree_map(lambda leaf: leaf[i], xs))
    if ys[0] is None:
        return carry, None
    return carry, tree_map(lambda *leaves: torch.stack(leaves), *ys)


# ---- butterfly -----------------------------------------------------------------------------------------------------

def butterfly_tables(d, device=None):
    """Per layer l (stride 2**l): who I am paired with, on which side of the pair I sit, which angle the pair owns."""
    i = torch.arange(d, device=device)
    strides = 2 ** torch.arange(int(math.log2(d)), device=device)[:, None]
    partner = i ^ strides
    upper = (i & strides) != 0
    slot = torch.div(i, 2 * strides, rounding_mode="floor") * strides + i % strides
    return {"partner": partner, "sign": torch.where(upper, 1, -1), "slot": slot}


def butterfly(angles, x, tables, transpose=False):
    """angles [L, d/2], x [d] -> [d]."""

    def layer(h, inp):
        ang, tab = inp
        ang = torch.take_along_dim(ang, tab["slot"], 0)
        s = torch.sin(ang) * tab["sign"]
        if transpose:
            s = -s
        return torch.cos(ang) * h + s * h[tab["partner"]], None

    y, _ = scan(layer, x, (angles, tables), reverse=transpose)
    return y


def ternarize(w):
    gamma = torch.mean(torch.abs(w), dim=-1, keepdim=True)
    q = gamma * torch.clip(torch.round(w / (gamma + 1e-8)), -1.0, 1.0)
    return w + stop_gradient(q - w)


def expert_apply(angles, shared, tables, x):
    z = butterfly(angles["theta"], x, tables, transpose=True)
    z = shared["w_hat"] @ z + shared["b"]
    return butterfly(angles["phi"], z, tables)


def moe_apply(params, x, *, k, tables):
    """x [T, d] -> [T, d]."""
    logits = x @ params["router"]["kernel"] + params["router"]["bias"]
    _, idx = torch.topk(logits, k)
    chosen = torch.nn.functional.one_hot(idx, logits.shape[-1]).sum(-2)
    gates = chosen * torch.sigmoid(logits)
    shared = {"w_hat": ternarize(params["w"]), "b": params["b"]}
    over_tokens = vmap(expert_apply, in_dims=(None, None, None, 0))
    over_experts = vmap(over_tokens, in_dims=({"theta": 0, "phi": 0}, None, None, None))
    ys = over_experts(params["experts"], shared, tables, x)
    return torch.einsum("te,etd->td", gates, ys)


# ---- the rest of the network ---------------------------------------------------------------------------------------

def layer_norm(params, x, eps=1e-5):
    mu = x.mean(-1, keepdim=True)
    var = ((x - mu) ** 2).mean(-1, keepdim=True)
    return (x - mu) * torch.rsqrt(var + eps) * params["scale"] + params["bias"]


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def lru_apply(params, x):
    """x [N, d]; h_t = a * h_{t-1} + sqrt(1 - a^2) * u_t with a learnt decay per channel."""
    a = torch.exp(-torch.exp(params["log_nu"]))
    u = torch.sqrt(1.0 - a * a) * dense(params["in"], x)

    def step(h, u_t):
        h = a * h + u_t
        return h, h

    _, hs = scan(step, torch.zeros_like(u[0]), u)
    return dense(params["out"], hs * torch.sigmoid(dense(params["gate"], x)))


def block_apply(params, x, *, k, tables):
    """x [B, N, d]."""
    x = x + vmap(lru_apply, in_dims=(None, 0))(params["lru"], layer_norm(params["norm1"], x))
    tokens = layer_norm(params["norm2"], x).reshape(-1, x.shape[-1])
    return x + moe_apply(params["moe"], tokens, k=k, tables=tables).reshape(x.shape)


def forecaster_apply(params, series, *, patch, horizon, k):
    """series [B, time, channels] -> [B, horizon, channels]."""
    b, t, c = series.shape
    mean = series.mean(1, keepdim=True)
    std = torch.sqrt(series.var(1, keepdim=True, unbiased=False) + 1e-5)
    x = dense(params["embed"], ((series - mean) / std).reshape(b, t // patch, patch * c))
    x = x + params["pos"]
    tables = butterfly_tables(x.shape[-1], device=x.device)
    body = partial(block_apply, k=k, tables=tables)
    x, _ = scan(lambda h, p: (body(p, h), None), x, params["blocks"])
    x = layer_norm(params["norm"], x)
    y = dense(params["head"], x[:, -1]).reshape(b, horizon, c)
    return y * std + mean


def forecaster_init(*, d, experts, blocks, patches, patch, channels, horizon):
    depth = int(math.log2(d))

    def n(*shape, std=1.0, mean=0.0):
        return mean + std * torch.randn(*shape)

    def dense_init(i, o, lead=()):
        return {"kernel": n(*lead, i, o, std=i ** -0.5), "bias": n(*lead, o, std=0.1)}

    def norm_init(lead=()):
        return {"scale": n(*lead, d, mean=1.0, std=0.2), "bias": n(*lead, d, std=0.1)}

    lead = (blocks,)
    return {
        "embed": dense_init(patch * channels, d),
        "pos": n(patches, d, std=0.5),
        "blocks": {
            "norm1": norm_init(lead),
            "lru": {
                "log_nu": n(*lead, d, mean=-1.0, std=0.7),
                "in": dense_init(d, d, lead), "gate": dense_init(d, d, lead), "out": dense_init(d, d, lead),
            },
            "norm2": norm_init(lead),
            "moe": {
                "router": dense_init(d, experts, lead),
                "w": n(*lead, d, d, std=0.1),
                "b": n(*lead, d, std=0.1),
                "experts": {"theta": n(*lead, experts, depth, d // 2, std=0.5),
                            "phi": n(*lead, experts, depth, d // 2, std=0.5)},
            },
        },
        "norm": norm_init(),
        "head": dense_init(d, horizon * channels),
    }


def flatten_dict(tree, prefix=""):
    for name, sub in tree.items():
        if isinstance(sub, dict):
            yield from flatten_dict(sub, prefix + name + "/")
        else:
            yield prefix + name, sub


def unflatten_dict(flat):
    tree = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


class Bound(nn.Module):
    """Holds a parameter tree and calls `apply(params, *inputs)`."""

    def __init__(self, apply, params):
        super().__init__()
        self.params = nn.ParameterDict(dict(flatten_dict(params)))
        self.apply_fn = apply

    def forward(self, *inputs):
        return self.apply_fn(unflatten_dict(self.params), *inputs)


def make():
    torch.manual_seed(3)
    params = forecaster_init(d=64, experts=8, blocks=3, patches=24, patch=4, channels=3, horizon=8)
    model = Bound(partial(forecaster_apply, patch=4, horizon=8, k=3), params)
    time = torch.arange(96.0)[:, None] / torch.tensor([5.0, 11.0, 23.0])
    series = torch.sin(time + 3.0 * torch.randn(2, 1, 3)) + 0.3 * torch.randn(2, 96, 3)
    return model.eval(), (series,)
