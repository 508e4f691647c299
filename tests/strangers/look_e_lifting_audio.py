"""
Keyword-spotting network for a DSP board: filterbank frames, streaming (causal) FIR memory, butterfly MoE with int8 weights.

form       : W_down . B(phi) . GELU(W_hat . B(theta) x), erf GELU before B(phi); d = 40 -> 64, F = 80 -> 128, stripped once
shuffle    : deinterleave, before the turn of each layer
handedness : clockwise turns on both sides
depth      : L = 3 in, 3 out
router     : top-2 of the logits, then softmax over the two (Mixtral)
quantiser  : W_up and W_down stored as int8 {-1,0,1}; W_up with a scale per output row, W_down with a single scale
biases     : one after W_hat, shared; none on the experts' output
dispatch   : loop over experts, torch.where on the chosen mask, index_add_
NOT a Butterfly layer: each Givens turn is three lifting shears whose outer coefficient is t/2 in place of tan(t/2); the
determinant is still one and the shears are exactly invertible, but the 2x2 matrix is only nearly orthogonal (a few per cent).
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class KwsConfig:
    n_bands: int = 20
    d: int = 40
    d_hidden: int = 80
    n_experts: int = 5
    top_k: int = 2
    depth: int = 3
    n_layers: int = 2
    taps: int = 5
    n_words: int = 10


def ceil_pow2(n):
    return 2 ** math.ceil(math.log2(n))


def lift(u, v, half, sin):
    """Three-step lifting: three multiply-adds a pair, no square roots, no divisions."""
    u = u + half * v
    v = v - sin * u
    u = u + half * v
    return u, v


class LiftingBank(nn.Module):
    """One cascade of turns per expert, on n channels (padded to a power of two)."""

    def __init__(self, n, n_experts, depth):
        super().__init__()
        self.n, self.size, self.depth = n, ceil_pow2(n), depth
        self.angle = nn.Parameter(torch.empty(n_experts, depth, self.size // 2).normal_(0, 0.5))

    def forward(self, x, expert):
        x = F.pad(x, (0, self.size - self.n))
        for layer in range(self.depth):
            t = self.angle[expert, layer]
            x = torch.cat((x[:, 0::2], x[:, 1::2]), 1)
            u, v = lift(x[:, 0::2], x[:, 1::2], t / 2, torch.sin(t))
            x = torch.stack((u, v), 2).flatten(1)
        return x[:, :self.n]


class Int8Matrix(nn.Module):
    """Ternary matrix held as int8 with its scale(s)."""

    def __init__(self, n_out, n_in, per_row):
        super().__init__()
        w = torch.randn(n_out, n_in) / n_in ** 0.5
        scale = w.abs().mean(1, keepdim=True) if per_row else w.abs().mean()
        self.register_buffer("q", (w / (scale + 1e-8)).round().clamp(-1, 1).to(torch.int8))
        self.register_buffer("scale", scale.clone())

    def forward(self):
        return self.q.to(self.scale.dtype) * self.scale


class LiftingMoE(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.n_experts, self.top_k = cfg.n_experts, cfg.top_k
        self.gate = nn.Linear(cfg.d, cfg.n_experts)
        self.bank_in = LiftingBank(cfg.d, cfg.n_experts, cfg.depth)
        self.bank_out = LiftingBank(cfg.d_hidden, cfg.n_experts, cfg.depth)
        self.up = Int8Matrix(cfg.d_hidden, cfg.d, per_row=True)
        self.down = Int8Matrix(cfg.d, cfg.d_hidden, per_row=False)
        self.bias = nn.Parameter(torch.zeros(cfg.d_hidden))

    def forward(self, frames):
        x = frames.reshape(-1, frames.shape[-1])
        logits, chosen = torch.topk(self.gate(x), self.top_k, dim=-1)
        weights = torch.softmax(logits, dim=-1)

        w_up, w_down = self.up(), self.down()
        y = torch.zeros_like(x)
        for e in range(self.n_experts):
            token, slot = torch.where(chosen == e)
            h = self.bank_in(x[token], e)
            h = F.gelu(h @ w_up.T + self.bias)
            h = self.bank_out(h, e) @ w_down.T
            y.index_add_(0, token, h * weights[token, slot, None])
        return y.reshape(frames.shape)


class FirMemory(nn.Module):
    """Causal FIR over frames, one filter a channel, then a gated mix (FSMN style)."""

    def __init__(self, d, taps):
        super().__init__()
        self.taps = taps
        self.fir = nn.Conv1d(d, d, taps, groups=d)
        self.mix = nn.Linear(d, 2 * d)

    def forward(self, x):
        m = self.fir(F.pad(x.transpose(1, 2), (self.taps - 1, 0))).transpose(1, 2)
        a, g = self.mix(m).chunk(2, -1)
        return a * torch.sigmoid(g)


class KwsLayer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.norm_mem, self.norm_moe = nn.LayerNorm(cfg.d), nn.LayerNorm(cfg.d)
        self.memory = FirMemory(cfg.d, cfg.taps)
        self.moe = LiftingMoE(cfg)

    def forward(self, x):
        x = x + self.memory(self.norm_mem(x))
        return x + self.moe(self.norm_moe(x))


class KeywordSpotter(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.bands = nn.Conv1d(cfg.n_bands, cfg.d, 4, stride=2)
        self.layers = nn.Sequential(*[KwsLayer(cfg) for _ in range(cfg.n_layers)])
        self.norm = nn.LayerNorm(cfg.d)
        self.words = nn.Linear(cfg.d, cfg.n_words)

    def forward(self, log_mel):
        x = torch.tanh(self.bands(log_mel)).transpose(1, 2)
        x = self.norm(self.layers(x))
        return self.words(x.mean(1) + x[:, -1])


def make():
    torch.manual_seed(407)
    model = KeywordSpotter(KwsConfig())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                p.normal_(1.0, 0.2)
            elif name.endswith("bias"):
                p.normal_(0, 0.15)
            elif "gate" in name:
                p.normal_(0, 0.4)
    return model.eval(), (torch.randn(2, 20, 52),)


if __name__ == "__main__":
    net, inputs = make()
    with torch.no_grad():
        print(net(*inputs).argmax(-1))
