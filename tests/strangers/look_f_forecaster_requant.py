"""Patch-based time-series forecaster (instance norm, patches, attention + expert blocks, horizon head); mixture 32 -> 64 -> 32.

form: y = sum_i p_i(x) * W_down GELU_tanh( Q[ B(phi_i) W B(theta_i)^T ] x + b ) (+ output bias once), float shared W_down
butterfly: complex numbers, channel pair (2j, 2j+1) = z_j, z_j * exp(i a_j), then interleave the two halves; dense expert
    matrices are built by running them over the rows and columns of W; depth: 4 layers on the 32 side, 3 on the 64 side
router: softmax over all 12 (no bias), top-4, not renormalised; dispatch: gather of the chosen matrices, one bmm
quantiser: absmean ternary, gamma per matrix, straight-through
NOT a Butterfly layer of the papers: each expert's matrix is quantised AFTER rotating the latent W, so there is no shared
    ternary prototype W_hat with expert_i = B(phi_i) W_hat B(theta_i)^T, but E different ternary matrices.
"""
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Spec(NamedTuple):
    lookback: int = 60
    horizon: int = 12
    patch: int = 6
    stride: int = 3
    dim: int = 32
    hidden: int = 64
    heads: int = 4
    blocks: int = 2
    experts: int = 12
    active: int = 4
    l_model: int = 4
    l_hidden: int = 3


class RevIN(nn.Module):
    """Reversible instance normalisation of [B, time, series]."""

    def __init__(self, series: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(series))
        self.shift = nn.Parameter(torch.zeros(series))

    def stats(self, x: Tensor):
        return x.mean(1, keepdim=True), (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()

    def norm(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return (x - mean) / std * self.scale + self.shift

    def denorm(self, y: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return (y - self.shift) / self.scale * std + mean


def spin(m: Tensor, angles: Tensor) -> Tensor:
    """Rotate the last axis of m [E, R, n] by every expert's layers, angles [E, L, n/2]."""
    phase = torch.polar(torch.ones_like(angles), angles)
    for l in range(angles.shape[1]):
        z = torch.view_as_complex(m.reshape(*m.shape[:-1], -1, 2).contiguous()) * phase[:, l, None, :]
        m = torch.view_as_real(z).flatten(-2)
        first, second = m.chunk(2, dim=-1)
        m = torch.stack((first, second), dim=-1).flatten(-2)
    return m


def absmean_ternary(w: Tensor) -> Tensor:
    gamma = w.abs().mean(dim=(-2, -1), keepdim=True)
    q = (w / (gamma + 1e-8)).round().clamp(-1, 1) * gamma
    return w + (q - w).detach()


class OrbitExperts(nn.Module):
    def __init__(self, s: Spec):
        super().__init__()
        self.active = s.active
        self.router = nn.Linear(s.dim, s.experts, bias=False)
        self.proto = nn.Parameter(torch.randn(s.hidden, s.dim) * s.dim ** -0.5 * 1.4)
        self.theta = nn.Parameter(torch.randn(s.experts, s.l_model, s.dim // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(s.experts, s.l_hidden, s.hidden // 2) * 0.5)
        self.bias_h = nn.Parameter(torch.zeros(s.hidden))
        self.w_down = nn.Linear(s.hidden, s.dim, bias=False)
        self.bias_out = nn.Parameter(torch.zeros(s.dim))

    def expert_matrices(self) -> Tensor:
        n_exp = self.theta.shape[0]
        m = spin(self.proto.expand(n_exp, -1, -1), self.theta)  # rows of W: W B(theta)^T
        m = spin(m.transpose(1, 2), self.phi).transpose(1, 2)  # columns: B(phi) W B(theta)^T
        return absmean_ternary(m)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        prob, pick = self.router(flat).softmax(-1).topk(self.active, dim=-1)
        w = self.expert_matrices()[pick]  # [T, k, F, d]
        t, k, f, d = w.shape
        h = torch.bmm(w.reshape(t, k * f, d), flat.unsqueeze(-1)).reshape(t, k, f)
        h = F.gelu(h + self.bias_h, approximate="tanh")
        y = self.w_down((h * prob.unsqueeze(-1)).sum(1)) + self.bias_out
        return y.reshape(x.shape)


class PatchAttention(nn.Module):
    def __init__(self, s: Spec):
        super().__init__()
        self.heads = s.heads
        self.to_qkv = nn.Linear(s.dim, 3 * s.dim)
        self.to_out = nn.Linear(s.dim, s.dim)
        self.decay = nn.Parameter(torch.rand(s.heads) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (u.reshape(b, n, self.heads, -1).transpose(1, 2) for u in self.to_qkv(x).chunk(3, dim=-1))
        pos = torch.arange(n, device=x.device)
        dist = (pos[:, None] - pos[None, :]).abs().to(x.dtype)
        logits = q @ k.mT / (d // self.heads) ** 0.5 - self.decay[:, None, None] * dist
        return self.to_out((logits.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    def __init__(self, s: Spec):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(s.dim), nn.LayerNorm(s.dim)
        self.attention, self.experts = PatchAttention(s), OrbitExperts(s)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.n1(x))
        return x + self.experts(self.n2(x))


class Forecaster(nn.Module):
    def __init__(self, s: Spec, series: int):
        super().__init__()
        self.s = s
        self.n_patches = (s.lookback - s.patch) // s.stride + 1
        self.revin = RevIN(series)
        self.embed = nn.Linear(s.patch, s.dim)
        self.position = nn.Parameter(torch.randn(self.n_patches, s.dim) * 0.5)
        self.blocks = nn.Sequential(*(Block(s) for _ in range(s.blocks)))
        self.head = nn.Linear(self.n_patches * s.dim, s.horizon)

    def forward(self, history: Tensor) -> Tensor:
        b, _, series = history.shape
        mean, std = self.revin.stats(history)
        x = self.revin.norm(history, mean, std).transpose(1, 2).reshape(b * series, -1)
        x = self.embed(x.unfold(-1, self.s.patch, self.s.stride)) + self.position
        y = self.head(self.blocks(x).flatten(1)).reshape(b, series, -1).transpose(1, 2)
        return self.revin.denorm(y, mean, std)


def make():
    torch.manual_seed(8)
    model = Forecaster(Spec(), series=3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            leaf = name.rsplit(".", 1)[-1]
            if "bias" in leaf or leaf == "shift":
                p.normal_(0, 0.2)
            elif leaf == "scale" or ".n1." in name or ".n2." in name:
                p.normal_(1, 0.15)
            elif name.endswith("router.weight"):
                p.normal_(0, 0.4)
    time = torch.arange(60.0)[None, :, None]
    period = torch.tensor([[[7.0, 12.0, 24.0]]])
    history = torch.sin(2 * torch.pi * time / period) * 3 + 0.05 * time + torch.randn(1, 60, 3)
    return model.eval(), (history,)
