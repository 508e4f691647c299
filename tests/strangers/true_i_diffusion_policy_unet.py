"""Conditional 1-D U-Net denoiser for visuomotor diffusion policies, with butterfly MoE blocks at every resolution.

Noisy action chunks (B, H, act_dim) are denoised given a proprio/vision feature and the diffusion step (FiLM).
Expert: Algorithm 2 of ButterflyViT, W_down . B(phi) . GELU_tanh(W_hat . B(theta) x + b_up) + b_down.
Shuffle: none; FFT-style pairs at distance 1, 2, 4, ... ; rotation is clockwise (a' = c a + s b, b' = c b - s a).
L_in = 4, L_out = 5 (32 -> 32 and 80 -> 128 channels), or L_in = 6, L_out = 5 in the bottleneck (48 -> 64, 96 -> 128).
Router: linear with bias, top-2 of 6, softmax over the two kept logits.
Quantiser: absmean round-clip, one gamma per tensor, straight-through.  W_down stays float.
Biases: b_up before the GELU, b_down inside the expert (so weighted by the gates).
Dispatch: loop over the k slots, angle tables gathered for each token (theta[idx]).
"""
import math
from typing import Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F


class SinusoidalPosEmb(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        half = dim // 2
        self.register_buffer("freqs", torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half).float()))

    def forward(self, k):
        ang = k[:, None] * self.freqs[None, :]
        return torch.cat((ang.sin(), ang.cos()), dim=-1)


class Conv1dBlock(nn.Module):
    """Conv1d --> GroupNorm --> Mish"""

    def __init__(self, inp, out, kernel_size=3, n_groups=4):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(inp, out, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(n_groups, out),
            nn.Mish(),
        )

    def forward(self, x):
        return self.block(x)


class ConditionalResBlock1D(nn.Module):
    def __init__(self, inp, out, cond_dim):
        super().__init__()
        self.conv1 = Conv1dBlock(inp, out)
        self.conv2 = Conv1dBlock(out, out)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, 2 * out), nn.Unflatten(-1, (2, out, 1)))
        self.skip = nn.Conv1d(inp, out, 1) if inp != out else nn.Identity()

    def forward(self, x, cond):
        h = self.conv1(x)
        scale, shift = self.film(cond).unbind(1)
        h = h * (1 + scale) + shift
        return self.conv2(h) + self.skip(x)


def next_pow2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def fft_butterfly(x: torch.Tensor, ang: torch.Tensor) -> torch.Tensor:
    """x (N, width), ang (N, L, P): layer l rotates channels that lie 2**l apart."""
    n, width = x.shape
    layers, half = ang.shape[1:]
    full = 2 * half
    h = F.pad(x, (0, full - width))
    for lvl in range(layers):
        dist = 2 ** lvl
        h = h.view(n, full // (2 * dist), 2, dist)
        t = ang[:, lvl].reshape(n, full // (2 * dist), dist)
        c, s = t.cos(), t.sin()
        a, b = h[:, :, 0], h[:, :, 1]
        h = torch.stack((a * c + b * s, b * c - a * s), dim=2).reshape(n, full)
    return h[:, :width]


class ButterflyActionMoE(nn.Module):
    def __init__(self, dim, hidden, n_experts=6, top_k=2, levels: Tuple[int, int] = (4, 5)):
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(dim, n_experts)
        self.theta = nn.Parameter(0.5 * torch.randn(n_experts, levels[0], next_pow2(dim) // 2))
        self.phi = nn.Parameter(0.5 * torch.randn(n_experts, levels[1], next_pow2(hidden) // 2))
        self.w_up = nn.Parameter(torch.randn(hidden, dim) / dim ** 0.5)
        self.b_up = nn.Parameter(torch.zeros(hidden))
        self.down = nn.Linear(hidden, dim)

    def quantised(self):
        w = self.w_up
        gamma = w.abs().mean()
        q = gamma * torch.clamp(torch.round(w / (gamma + 1e-8)), -1, 1)
        return w + (q - w).detach() if self.training else q

    def forward(self, x):
        # x: (B, C, H), channels first like everything else in the U-Net
        B, C, H = x.shape
        tok = x.permute(0, 2, 1).reshape(B * H, C)
        val, idx = torch.topk(self.router(tok), self.top_k, dim=-1)
        gate = F.softmax(val, dim=-1)
        w = self.quantised()
        out = torch.zeros_like(tok)
        for slot in range(self.top_k):
            which = idx[:, slot]
            h = fft_butterfly(tok, self.theta[which])
            h = F.gelu(F.linear(h, w, self.b_up), approximate="tanh")
            h = fft_butterfly(h, self.phi[which])
            out = out + gate[:, slot, None] * self.down(h)
        return out.view(B, H, C).permute(0, 2, 1)


class MoEStage(nn.Module):
    def __init__(self, inp, out, cond_dim, hidden, levels):
        super().__init__()
        self.res = ConditionalResBlock1D(inp, out, cond_dim)
        self.norm = nn.GroupNorm(1, out)
        self.moe = ButterflyActionMoE(out, hidden, levels=levels)

    def forward(self, x, cond):
        x = self.res(x, cond)
        return x + self.moe(self.norm(x))


class DiffusionPolicyUnet(nn.Module):
    def __init__(self, act_dim=7, obs_dim=20, dims=(32, 48), step_dim=32):
        super().__init__()
        c0, c1 = dims
        self.step_encoder = nn.Sequential(
            SinusoidalPosEmb(step_dim), nn.Linear(step_dim, 64), nn.Mish(), nn.Linear(64, step_dim))
        cond = step_dim + obs_dim
        self.enc = MoEStage(act_dim, c0, cond, hidden=80, levels=(4, 5))
        self.downsample = nn.Conv1d(c0, c0, 3, 2, 1)
        self.mid = MoEStage(c0, c1, cond, hidden=96, levels=(6, 5))
        self.upsample = nn.ConvTranspose1d(c1, c1, 4, 2, 1)
        self.dec = MoEStage(c0 + c1, c0, cond, hidden=80, levels=(4, 5))
        self.final = nn.Sequential(Conv1dBlock(c0, c0), nn.Conv1d(c0, act_dim, 1))

    def forward(self, noisy_actions, obs, step):
        cond = torch.cat([self.step_encoder(step), obs], dim=-1)
        x = noisy_actions.moveaxis(-1, -2)
        skip = self.enc(x, cond)
        x = self.mid(self.downsample(skip), cond)
        x = torch.cat((self.upsample(x), skip), dim=1)
        x = self.dec(x, cond)
        return self.final(x).moveaxis(-1, -2)


def make():
    torch.manual_seed(411)
    net = DiffusionPolicyUnet()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.GroupNorm):
                m.weight.normal_(1.0, 0.15)
                m.bias.normal_(0.0, 0.1)
            elif isinstance(m, (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)):
                m.bias.normal_(0.0, 0.1)
            if isinstance(m, ButterflyActionMoE):
                m.b_up.normal_(0.0, 0.2)
                m.router.weight.normal_(0.0, 0.4)
                m.router.bias.normal_(0.0, 0.2)
    inputs = (torch.randn(2, 16, 7), torch.randn(2, 20), torch.tensor([17.0, 63.0]))
    return net.eval(), inputs
