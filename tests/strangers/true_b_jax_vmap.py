"""Patch-mixer forecaster for multivariate series; equation (3) experts, written as pure functions over parameter dicts.

form       B(phi_i) . (W_hat . B(theta_i)^T x + b), no activation, no W_down, so F = d = 32
butterfly  no shuffle: FFT-like strides 1, 2, 4, 8, 16 (L = 5 = log2 d on either side), [c -s; s c]; the input side applies
           the transpose (layers backwards, angles negated), the output side the plain product
router     softmax over all experts, top-3, not renormalised
quantiser  round/clip, one gamma per output row, straight-through
biases     b is shared, added after W_hat and hence rotated by B(phi_i) and weighted by the gate
dispatch   torch.func.vmap over the experts' angle tables (all experts, all tokens), combine weights by scatter and einsum
"""
from functools import partial

import torch
from torch import nn
from torch.func import vmap


# ----------------------------------------------------------------------------- pure functions

def givens(stride, angle, x):
    """One butterfly stage on a vector x (n,): pairs at distance `stride`."""
    n = x.shape[-1]
    v = x.reshape(n // (2 * stride), 2, stride)
    t = angle.reshape(n // (2 * stride), stride)
    lo, hi = v[:, 0], v[:, 1]
    c, s = torch.cos(t), torch.sin(t)
    return torch.stack([c * lo - s * hi, s * lo + c * hi], dim=1).reshape(n)


def butterfly(angles, x):
    for level in range(angles.shape[0]):
        x = givens(2 ** level, angles[level], x)
    return x


def butterfly_T(angles, x):
    for level in reversed(range(angles.shape[0])):
        x = givens(2 ** level, -angles[level], x)
    return x


def ternary(w, eps=1e-8):
    gamma = w.abs().mean(dim=1, keepdim=True)
    q = gamma * torch.clip(torch.round(w / (gamma + eps)), -1.0, 1.0)
    return w + (q - w).detach()


def expert(w_hat, b, theta, phi, x):
    h = w_hat @ butterfly_T(theta, x) + b
    return butterfly(phi, h)


def moe(p, x, *, k):
    """x (T, d) -> (T, d)"""
    probs = torch.softmax(x @ p["router_w"] + p["router_b"], dim=-1)
    top_p, top_i = torch.topk(probs, k)
    combine = torch.zeros_like(probs).scatter(-1, top_i, top_p)
    over_tokens = vmap(partial(expert, ternary(p["w"]), p["b"]), in_dims=(None, None, 0))
    over_experts = vmap(over_tokens, in_dims=(0, 0, None))
    ys = over_experts(p["theta"], p["phi"], x)
    return torch.einsum("te,etd->td", combine, ys)


def layer_norm(p, x, eps=1e-6):
    mu = x.mean(-1, keepdim=True)
    var = x.var(-1, keepdim=True, unbiased=False)
    return (x - mu) * torch.rsqrt(var + eps) * p["scale"] + p["bias"]


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def time_mix(p, x):
    y = dense(p["in"], x.transpose(-1, -2))
    y = nn.functional.silu(y)
    return dense(p["out"], y).transpose(-1, -2)


def forecaster(params, series, *, patch, k):
    """series (B, C, N) -> (B, C, horizon)"""
    B, C, N = series.shape
    mu, sd = series.mean(-1, keepdim=True), series.std(-1, keepdim=True) + 1e-5
    tok = ((series - mu) / sd).reshape(B * C, N // patch, patch)
    h = dense(params["embed"], tok) + params["pos"]
    for blk in params["blocks"]:
        h = h + time_mix(blk["mix"], layer_norm(blk["ln1"], h))
        z = layer_norm(blk["ln2"], h)
        h = h + moe(blk["moe"], z.reshape(-1, z.shape[-1]), k=k).reshape(z.shape)
    out = dense(params["head"], layer_norm(params["ln"], h).reshape(B * C, -1))
    return out.reshape(B, C, -1) * sd + mu


# ----------------------------------------------------------------------------- initialisers

def init_dense(i, o):
    return {"kernel": torch.randn(i, o) / i ** 0.5, "bias": 0.1 * torch.randn(o)}


def init_ln(d):
    return {"scale": 1.0 + 0.2 * torch.randn(d), "bias": 0.2 * torch.randn(d)}


def init_moe(d, n_exp):
    levels = d.bit_length() - 1
    return {
        "router_w": 0.5 * torch.randn(d, n_exp), "router_b": 0.2 * torch.randn(n_exp),
        "w": torch.randn(d, d) / d ** 0.5, "b": 0.1 * torch.randn(d),
        "theta": 0.5 * torch.randn(n_exp, levels, d // 2), "phi": 0.5 * torch.randn(n_exp, levels, d // 2),
    }


def init(d=32, n_tok=8, patch=8, n_exp=6, depth=2, horizon=12):
    return {
        "embed": init_dense(patch, d), "pos": 0.2 * torch.randn(n_tok, d),
        "blocks": [{"ln1": init_ln(d), "ln2": init_ln(d), "moe": init_moe(d, n_exp),
                    "mix": {"in": init_dense(n_tok, 2 * n_tok), "out": init_dense(2 * n_tok, n_tok)}}
                   for _ in range(depth)],
        "ln": init_ln(d), "head": init_dense(n_tok * d, horizon),
    }


# ----------------------------------------------------------------------------- shell around the pytree

class PyTree(nn.Module):
    """Registers a nested dict/list of tensors as parameters and gives it back as plain dicts."""

    def __init__(self, tree):
        super().__init__()
        self._is_list = isinstance(tree, list)
        items = enumerate(tree) if self._is_list else tree.items()
        self._keys = []
        for key, value in items:
            name = f"i{key}" if self._is_list else f"k_{key}"
            self._keys.append((key, name))
            setattr(self, name, nn.Parameter(value) if isinstance(value, torch.Tensor) else PyTree(value))

    def tree(self):
        out = {key: (v.tree() if isinstance(v := getattr(self, name), PyTree) else v) for key, name in self._keys}
        return list(out.values()) if self._is_list else out


class Model(nn.Module):
    def __init__(self, apply_fn, params):
        super().__init__()
        self.apply_fn = apply_fn
        self.params = PyTree(params)

    def forward(self, *args):
        return self.apply_fn(self.params.tree(), *args)


def make():
    torch.manual_seed(141)
    model = Model(partial(forecaster, patch=8, k=3), init())
    t = torch.arange(64) / 64
    series = torch.stack([torch.sin(6.28 * (f * t + ph)) for f, ph in ((1.0, 0.1), (2.3, 0.4), (4.1, 0.0))])
    series = series[None] + 0.4 * torch.randn(2, 3, 64)
    return model.eval(), (series,)
