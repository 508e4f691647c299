"""Multivariate time-series forecaster (RevIN, patches, GRU mixing) with complex-number butterfly experts, top-1.

Shuffle:     interleave of two halves after each rotation.  Handedness: clockwise (z * exp(-i a)) on both sides, layers in order.
Depth:       L_in = 3, L_out = 4;  d = 32, F = 64.
Router:      linear with bias, top-1, the raw logit is the gate.
Quantiser:   absmean per output row, round and clip, straight-through.
Form:        W_down . B(phi) . GELU_tanh(W_hat . B(theta) x + b_up), W_down float, no bias on it.
Dispatch:    loop over the experts that occur, boolean mask, in-place scatter of the slab.
Why not a Butterfly layer: the riffle halves the whole [t, n] slab of an expert instead of every row of it, so channels of one
token move into other tokens of that slab; a slab of a single token is the only case that equals the papers' layer.
"""
import math
from types import SimpleNamespace

import torch
import torch.nn as nn
from torch.nn import functional as F


class RevIN(nn.Module):
    """Per-series normalisation of the past, undone on the forecast."""

    def __init__(self, n_series, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.empty(n_series).uniform_(0.8, 1.3))
        self.shift = nn.Parameter(torch.empty(n_series).normal_(0, 0.2))

    def norm(self, x):
        mu = x.mean(dim=1, keepdim=True)
        sd = torch.sqrt(x.var(dim=1, keepdim=True, unbiased=False) + self.eps)
        return (x - mu) / sd * self.scale + self.shift, (mu, sd)

    def denorm(self, y, stats):
        mu, sd = stats
        return (y - self.shift) / self.scale * sd + mu


class AbsMeanLinear(nn.Linear):
    def forward(self, x):
        w = self.weight
        gamma = w.abs().mean(dim=1, keepdim=True)
        q = gamma * (w / (gamma + 1e-8)).round().clamp(-1, 1)
        return F.linear(x, w + (q - w).detach(), self.bias)


class PhaseButterfly(nn.Module):
    """Channel pairs as complex numbers; every layer is a phase per pair and a riffle."""

    def __init__(self, n_expert, n, n_layer):
        super().__init__()
        self.phase = nn.Parameter(torch.randn(n_expert, n_layer, n // 2) * 0.5)

    def forward(self, h, e):
        for phase in self.phase[e]:
            z = torch.view_as_complex(h.reshape(*h.shape[:-1], -1, 2))
            z = z * torch.polar(torch.ones_like(phase), -phase)
            h = torch.view_as_real(z).reshape(h.shape)
            h = h.view(2, -1).t().reshape(h.shape)
        return h


class PhaseMoE(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.router = nn.Linear(c.n_embd, c.n_expert)
        self.rot_in = PhaseButterfly(c.n_expert, c.n_embd, c.n_rot_in)
        self.rot_out = PhaseButterfly(c.n_expert, c.n_ff, c.n_rot_out)
        self.c_fc = AbsMeanLinear(c.n_embd, c.n_ff)
        self.c_proj = nn.Linear(c.n_ff, c.n_embd, bias=False)

    def run_expert(self, h, e):
        h = self.rot_in(h, e)
        h = F.gelu(self.c_fc(h), approximate="tanh")
        h = self.rot_out(h, e)
        return self.c_proj(h)

    def forward(self, x):
        B, T, C = x.size()
        x = x.view(-1, C)
        gate, pick = self.router(x).topk(1, dim=-1)
        pick = pick.squeeze(-1)
        out = torch.zeros_like(x)
        for e in pick.unique().tolist():
            mask = pick == e
            out[mask] = gate[mask] * self.run_expert(x[mask], e)
        return out.view(B, T, C)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.ln_1 = nn.LayerNorm(c.n_embd)
        self.gru = nn.GRU(c.n_embd, c.n_embd, batch_first=True)
        self.ln_2 = nn.LayerNorm(c.n_embd)
        self.moe = PhaseMoE(c)

    def forward(self, x):
        x = x + self.gru(self.ln_1(x))[0]
        x = x + self.moe(self.ln_2(x))
        return x


class Forecaster(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.revin = RevIN(c.n_series)
        self.wpe = nn.Embedding(c.n_past // c.patch, c.n_embd)
        self.patch_in = nn.Linear(c.patch * c.n_series, c.n_embd)
        self.blocks = nn.ModuleList([Block(c) for _ in range(c.n_layer)])
        self.ln_f = nn.LayerNorm(c.n_embd)
        self.head = nn.Linear(c.n_embd, c.n_future * c.n_series)
        self.apply(self._init_weights)

    def _init_weights(self, m):
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=1.0 / math.sqrt(m.in_features))
            if m.bias is not None:
                nn.init.normal_(m.bias, std=0.2)
        elif isinstance(m, nn.LayerNorm):
            nn.init.normal_(m.weight, mean=1.0, std=0.2)
            nn.init.normal_(m.bias, std=0.2)
        if isinstance(m, PhaseMoE):
            nn.init.normal_(m.router.weight, std=0.35)

    def forward(self, past):
        c = self.c
        x, stats = self.revin.norm(past)
        x = x.reshape(past.size(0), -1, c.patch * c.n_series)
        x = self.patch_in(x) + self.wpe.weight
        for block in self.blocks:
            x = block(x)
        y = self.head(self.ln_f(x[:, -1]))
        return self.revin.denorm(y.view(-1, c.n_future, c.n_series), stats)


def make():
    torch.manual_seed(605)
    c = SimpleNamespace(n_series=3, n_past=72, n_future=12, patch=4, n_embd=32, n_ff=64, n_layer=3,
                        n_expert=5, n_rot_in=3, n_rot_out=4)
    net = Forecaster(c)
    t = torch.arange(c.n_past) / 9.0
    past = torch.stack([torch.sin(t), torch.cos(0.7 * t), 0.1 * t], dim=-1) + 0.3 * torch.randn(3, c.n_past, c.n_series)
    return net.eval(), (past,)
