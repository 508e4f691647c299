"""Tabular regressor (FT-Transformer: numbers and categories become tokens), experts as pure functions under torch.vmap.

Shuffle:     none; FFT-style pairs (i, i ^ 2^l), written as a gather of the partner with a signed sine.
Handedness:  plain rotation, distances rising, on both sides.  Depth: L_in = 5 (full), L_out = 3;  d = 24 -> 32, F = 48 -> 64.
Router:      linear without bias, sigmoid, top-2, renormalised to sum one.
Quantiser:   W_up signs scaled by mean|w| of the tensor, |w| > tau * mean|w|;  W_down likewise with a fixed tau of 0.5.
Form:        W_down . (B(phi) . GELU_erf(W_hat . B(theta) x) + b_mid), b_mid shared; no other bias.
Dispatch:    every expert on every token by vmap, weights scattered into a dense [T, E], one einsum.
Why not a Butterfly layer: tau of W_up is learnt and belongs to the expert.  The latent W_up and its scale are shared, but each
expert keeps a different set of zeros, so there is no one W_hat: every expert has its own ternary matrix.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


# -- pure functions over dicts of tensors ------------------------------------------------------------------------------

def partner_tables(n, layers):
    i = torch.arange(n)
    strides = 2 ** torch.arange(layers).unsqueeze(1)
    partner = i ^ strides                                                # [L, n]
    upper = (i & strides) > 0
    pair = (i >> torch.arange(1, layers + 1).unsqueeze(1)) * strides + (i & (strides - 1))
    return partner, pair, torch.where(upper, 1.0, -1.0)


def butterfly(angles, x, tables):
    """angles [L, n / 2], x [T, width]."""
    partner, pair, sign = tables
    width, n = x.shape[-1], partner.shape[-1]
    x = F.pad(x, (0, n - width))
    for l in range(partner.shape[0]):
        a = angles[l][pair[l]]
        x = x * torch.cos(a) + x[..., partner[l]] * (torch.sin(a) * sign[l])
    return x[..., :width]


def ternary(w, tau):
    gamma = w.abs().mean()
    kept = (w.abs() > tau * gamma).to(w.dtype)
    return gamma * torch.sign(w) * kept


def expert_fn(own, shared, x, tables):
    h = butterfly(own["theta"], x, tables["in"])
    h = h @ ternary(shared["w_up"], own["tau"]).T
    h = butterfly(own["phi"], F.gelu(h), tables["out"])
    return (h + shared["b_mid"]) @ ternary(shared["w_down"], 0.5).T


def route(router, x, k):
    scores = torch.sigmoid(x @ router.T)
    top, index = torch.topk(scores, k, dim=-1)
    top = top / top.sum(-1, keepdim=True)
    return torch.zeros_like(scores).scatter(-1, index, top)


def moe_fn(params, x, tables, k):
    gates = route(params["router"], x, k)                                # [T, E]
    ys = torch.vmap(expert_fn, in_dims=(0, None, None, None))(params["own"], params["shared"], x, tables)
    return torch.einsum("te,etd->td", gates, ys)


# -- modules that hold the tensors -------------------------------------------------------------------------------------

class ButterflyMoE(nn.Module):
    def __init__(self, d, d_ff, experts, k, layers_in, layers_out):
        super().__init__()
        self.k = k
        n_in, n_out = (1 << (w - 1).bit_length() for w in (d, d_ff))
        self.router = nn.Parameter(torch.randn(experts, d) * 0.3)
        self.own = nn.ParameterDict({
            "theta": nn.Parameter(torch.randn(experts, layers_in, n_in // 2) * 0.5),
            "phi": nn.Parameter(torch.randn(experts, layers_out, n_out // 2) * 0.5),
            "tau": nn.Parameter(torch.empty(experts).uniform_(0.4, 0.8)),
        })
        self.shared = nn.ParameterDict({
            "w_up": nn.Parameter(torch.randn(d_ff, d) * 1.4 / d ** 0.5),
            "b_mid": nn.Parameter(torch.randn(d_ff) * 0.2),
            "w_down": nn.Parameter(torch.randn(d, d_ff) / d_ff ** 0.5),
        })
        for side, n, layers in (("in", n_in, layers_in), ("out", n_out, layers_out)):
            for name, table in zip(("partner", "pair", "sign"), partner_tables(n, layers)):
                self.register_buffer(f"{name}_{side}", table, persistent=False)

    def forward(self, x):
        tables = {side: tuple(getattr(self, f"{name}_{side}") for name in ("partner", "pair", "sign")) for side in ("in", "out")}
        params = {"router": self.router, "own": dict(self.own.items()), "shared": dict(self.shared.items())}
        return moe_fn(params, x.flatten(0, -2), tables, self.k).view_as(x)


class FeatureTokenizer(nn.Module):
    def __init__(self, n_num, cardinalities, d):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_num, d))
        self.bias = nn.Parameter(torch.randn(n_num + len(cardinalities), d) * 0.3)
        self.tables = nn.ModuleList([nn.Embedding(c, d) for c in cardinalities])
        self.cls = nn.Parameter(torch.randn(1, 1, d))

    def forward(self, x_num, x_cat):
        num = x_num.unsqueeze(-1) * self.weight
        cat = torch.stack([t(x_cat[:, j]) for j, t in enumerate(self.tables)], dim=1)
        tokens = torch.cat([num, cat], dim=1) + self.bias
        return torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], dim=1)


class FTButterfly(nn.Module):
    def __init__(self, n_num=9, cardinalities=(4, 7, 3), d=24, d_ff=48, depth=3, heads=3, experts=6, k=2, layers_in=5, layers_out=3):
        super().__init__()
        self.tokenizer = FeatureTokenizer(n_num, cardinalities, d)
        self.attn = nn.ModuleList([nn.MultiheadAttention(d, heads, batch_first=True) for _ in range(depth)])
        self.moe = nn.ModuleList([ButterflyMoE(d, d_ff, experts, k, layers_in, layers_out) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.LayerNorm(d) for _ in range(2 * depth + 1)])
        self.head = nn.Linear(d, 2)

    def forward(self, x_num, x_cat):
        x = self.tokenizer(x_num, x_cat)
        for i, (attn, moe) in enumerate(zip(self.attn, self.moe)):
            h = self.norms[2 * i](x)
            x = x + attn(h, h, h, need_weights=False)[0]
            x = x + moe(self.norms[2 * i + 1](x))
        return self.head(F.relu(self.norms[-1](x[:, 0])))


def make():
    torch.manual_seed(606)
    net = FTButterfly()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.add_(torch.randn_like(m.weight) * 0.2)
                m.bias.normal_(0, 0.2)
            if isinstance(m, nn.MultiheadAttention):
                m.in_proj_bias.normal_(0, 0.1)
                m.out_proj.bias.normal_(0, 0.1)
    x_cat = torch.stack([torch.randint(0, c, (3,)) for c in (4, 7, 3)], dim=1)
    return net.eval(), (torch.randn(3, 9), x_cat)
