"""Patch-based time-series forecaster: global spectral filtering over time, butterfly MoE over channels.

  * form       : ButterflyViT Algorithm 2,  W_down . B(phi_i) . GELU(W_hat . B(theta_i) x)
  * rotation   : decimation-style butterflies with no shuffle; stage s pairs channels at distance 2**s; each pair is a
                 complex number that is multiplied by a unit phasor exp(j*angle)
  * handedness : analysis side runs stages 0..L-1 (B), synthesis side runs them backwards with conjugated phasors (B^T)
  * L          : full depth, log2(32)=5 going in, log2(64)=6 coming out
  * router     : softmax over all 6 experts, top-2 of that, no renormalisation
  * quantiser  : absmean ternary, one gamma per tensor, straight-through expression always on; W_down float
  * biases     : one on the W_hat output (before GELU, tanh form), one on W_down (so weighted by the gates); none in router
  * dispatch   : filter-bank: all experts evaluated in one broadcast, combined by a sparse (T, E) weight matrix
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def butterfly_stage(x, w, span):
    """One radix-2 stage.  x: (..., E, N) real, w: (E, N/2) complex phasors, pairs (i, i+span)."""
    *lead, n = x.shape
    blocks = n // (2 * span)
    # (blocks, re|im, span) -> (blocks, span, re|im): upper leg is the real part, lower leg the imaginary part
    z = x.reshape(*lead, blocks, 2, span).transpose(-1, -2).contiguous()
    z = torch.view_as_complex(z) * w.view(-1, blocks, span)
    return torch.view_as_real(z).transpose(-1, -2).reshape(*lead, n)


class ButterflyBank(nn.Module):
    """A bank of `channels` orthogonal radix-2 flow graphs of size n."""

    def __init__(self, channels, n):
        super().__init__()
        self.n = n
        self.stages = int(math.log2(n))
        assert 1 << self.stages == n
        self.angle = nn.Parameter(0.5 * torch.randn(self.stages, channels, n // 2))

    def phasors(self):
        return torch.polar(torch.ones_like(self.angle), self.angle)

    def analyse(self, x):
        w = self.phasors()
        for s in range(self.stages):
            x = butterfly_stage(x, w[s], 1 << s)
        return x

    def synthesise(self, x):
        w = self.phasors().conj()
        for s in reversed(range(self.stages)):
            x = butterfly_stage(x, w[s], 1 << s)
        return x


class ButterflyMoE(nn.Module):
    def __init__(self, dim, hidden, n_experts, k):
        super().__init__()
        self.k = k
        self.router = nn.Linear(dim, n_experts, bias=False)
        self.pre = ButterflyBank(n_experts, dim)
        self.post = ButterflyBank(n_experts, hidden)
        self.w_up = nn.Parameter(torch.randn(hidden, dim) / math.sqrt(dim))
        self.b_up = nn.Parameter(torch.randn(hidden) * 0.1)
        self.down = nn.Linear(hidden, dim)

    def ternary(self):
        g = self.w_up.abs().mean()
        q = g * torch.clamp(torch.round(self.w_up / (g + 1e-8)), -1, 1)
        return self.w_up + (q - self.w_up).detach()

    def mixing_weights(self, x):
        p = torch.softmax(self.router(x), dim=-1)
        val, idx = torch.topk(p, self.k, dim=-1)
        return torch.zeros_like(p).scatter(-1, idx, val)

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])                                    # (T, d)
        g = self.mixing_weights(x)                                      # (T, E)
        h = x.unsqueeze(1).expand(-1, g.shape[1], -1)                   # (T, E, d)
        h = self.pre.analyse(h)
        h = F.gelu(F.linear(h, self.ternary(), self.b_up), approximate="tanh")
        h = self.post.synthesise(h)
        y = self.down(h)                                                # (T, E, d)
        return torch.einsum("te,ted->td", g, y).view(shape)


class SpectralFilter(nn.Module):
    """Circular convolution over patches with a per-channel learnt transfer function."""

    def __init__(self, steps, dim):
        super().__init__()
        self.steps = steps
        self.h = nn.Parameter(torch.randn(steps // 2 + 1, dim, 2) * 0.5)
        self.offset = nn.Parameter(torch.randn(dim) * 0.1)

    def forward(self, x):
        spec = torch.fft.rfft(x, dim=1, norm="ortho")
        spec = spec * torch.view_as_complex(self.h)
        return torch.fft.irfft(spec, n=self.steps, dim=1, norm="ortho") + self.offset


class Block(nn.Module):
    def __init__(self, steps, dim, hidden, n_experts, k):
        super().__init__()
        self.n1 = nn.LayerNorm(dim)
        self.mix = SpectralFilter(steps, dim)
        self.n2 = nn.LayerNorm(dim)
        self.moe = ButterflyMoE(dim, hidden, n_experts, k)

    def forward(self, x):
        x = x + self.mix(self.n1(x))
        return x + self.moe(self.n2(x))


class SpectralForecaster(nn.Module):
    def __init__(self, length=128, hop=8, horizon=24, dim=32, hidden=64, n_experts=6, k=2, depth=2):
        super().__init__()
        self.hop = hop
        steps = length // hop
        self.register_buffer("window", torch.hann_window(2 * hop, periodic=True).sqrt())
        self.embed = nn.Linear(2 * hop, dim)
        self.pos = nn.Parameter(torch.randn(steps, dim) * 0.3)
        self.blocks = nn.ModuleList([Block(steps, dim, hidden, n_experts, k) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(steps * dim, horizon)

    def forward(self, x):
        # x: (batch, length).  Remove level and scale, frame with 50 % overlap, restore at the end.
        mu = x.mean(dim=1, keepdim=True)
        sd = x.std(dim=1, keepdim=True) + 1e-5
        u = F.pad((x - mu) / sd, (self.hop // 2, self.hop - self.hop // 2))
        frames = u.unfold(1, 2 * self.hop, self.hop) * self.window
        h = self.embed(frames) + self.pos
        for blk in self.blocks:
            h = blk(h)
        return self.head(self.norm(h).flatten(1)) * sd + mu


def make():
    torch.manual_seed(11)
    m = SpectralForecaster()
    with torch.no_grad():
        for mod in m.modules():
            if isinstance(mod, nn.LayerNorm):
                mod.weight.uniform_(0.7, 1.4)
                mod.bias.normal_(0, 0.15)
            elif isinstance(mod, nn.Linear) and mod.bias is not None:
                mod.bias.normal_(0, 0.1)
            if isinstance(mod, ButterflyMoE):
                mod.router.weight.normal_(0, 0.35)
    t = torch.arange(128.0) / 128
    f = torch.tensor([[3.0], [7.0], [11.0]])
    x = torch.sin(2 * math.pi * f * t) + 0.5 * torch.cos(2 * math.pi * 2.3 * f * t) + 0.3 * torch.randn(3, 128) + 2.0
    return m.eval(), (x,)


if __name__ == "__main__":
    net, args = make()
    print(net(*args).shape)
