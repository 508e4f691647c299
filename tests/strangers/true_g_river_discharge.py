"""Rainfall-runoff model: two LSTMs with a ButterflyViT-type expert layer behind each, daily discharge at five gauges.

Deployed checkpoint of a hydrological forecasting service, hence weights come as int8 and are never trained here.

  form        W_down . B(phi) . GELU( W_hat . B(theta) x )      (ButterflyViT Algorithm 2)
  shuffle     the two halves interleaved, BEFORE each rotation   (eq. 4 order)
  handedness  clockwise [c s; -s c], same on both sides, 2x2 matrices built once per call
  L           3 on the way in, 2 on the way out;  d = 32, F = 64 (no padding needed)
  router      sigmoid score, top-1 of 7, the score itself is the gate
  quantiser   {-1,0,1} int8 buffers with one float scale per output row; W_down stored the same way
  biases      b_up before the GELU (shared), b_out added once after the experts (not weighted by the gate)
  dispatch    tokens sorted by expert, torch.split by counts, results put back with the inverse permutation
"""
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasinSetup(NamedTuple):
    n_forcing: int = 5          # precipitation, t_min, t_max, radiation, vapour pressure
    n_static: int = 9           # area, slope, soil depth, ...
    n_gauge: int = 5
    width: int = 32
    reservoir: int = 64
    n_regime: int = 7           # experts: "flow regimes"
    depth_in: int = 3
    depth_out: int = 2


class Int8Ternary(nn.Module):
    """y = (x Q^T) * s, with Q in {-1,0,1} kept in one byte per entry."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        dense = torch.randn(n_out, n_in)
        row = dense.abs().mean(dim=1)
        code = (dense / (row[:, None] + 1e-8)).round().clamp(-1, 1)
        self.register_buffer("code", code.to(torch.int8))
        self.register_buffer("row_scale", row * n_in ** -0.5 * (0.8 + 0.4 * torch.rand(n_out)))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.code.to(x.dtype)) * self.row_scale


def weave(x: Tensor) -> Tensor:
    upper, lower = x.chunk(2, dim=-1)
    out = torch.empty_like(x)
    out[..., 0::2] = upper
    out[..., 1::2] = lower
    return out


def plane_matrices(angle: Tensor) -> Tensor:
    """(..., P) -> (..., P, 2, 2)"""
    m = torch.zeros(*angle.shape, 2, 2, dtype=angle.dtype, device=angle.device)
    m[..., 0, 0] = m[..., 1, 1] = torch.cos(angle)
    m[..., 0, 1] = torch.sin(angle)
    m[..., 1, 0] = -torch.sin(angle)
    return m


def turn(x: Tensor, planes: Tensor) -> Tensor:
    """x (n, w);  planes (depth, w/2, 2, 2)"""
    for level in planes:
        pairs = weave(x).view(len(x), len(level), 2, 1)
        x = torch.matmul(level, pairs).view(x.shape)
    return x


class RegimeLayer(nn.Module):
    def __init__(self, s: BasinSetup):
        super().__init__()
        self.s = s
        self.score = nn.Linear(s.width, s.n_regime)
        self.theta = nn.Parameter(0.5 * torch.randn(s.n_regime, s.depth_in, s.width // 2))
        self.phi = nn.Parameter(0.5 * torch.randn(s.n_regime, s.depth_out, s.reservoir // 2))
        self.up = Int8Ternary(s.width, s.reservoir)
        self.b_up = nn.Parameter(0.2 * torch.randn(s.reservoir))
        self.down = Int8Ternary(s.reservoir, s.width)
        self.b_out = nn.Parameter(0.2 * torch.randn(s.width))

    def forward(self, x: Tensor) -> Tensor:
        days = x.flatten(0, -2)
        gate, regime = torch.sigmoid(self.score(days)).max(dim=-1)

        order = torch.argsort(regime, stable=True)
        counts = torch.bincount(regime, minlength=self.s.n_regime).tolist()
        R_in, R_out = plane_matrices(self.theta), plane_matrices(self.phi)

        slabs = []
        for e, slab in enumerate(torch.split(days[order], counts)):
            z = self.up(turn(slab, R_in[e])) + self.b_up
            slabs.append(self.down(turn(F.gelu(z), R_out[e])))
        back = torch.argsort(order)
        out = torch.cat(slabs)[back] * gate.unsqueeze(-1) + self.b_out
        return out.view_as(x)


class RiverNet(nn.Module):
    def __init__(self, s: BasinSetup = BasinSetup()):
        super().__init__()
        self.static = nn.Sequential(nn.Linear(s.n_static, s.width), nn.Tanh())
        self.forcing = nn.Linear(s.n_forcing, s.width)
        self.fast = nn.LSTM(s.width, s.width, batch_first=True)
        self.slow = nn.LSTM(s.width, s.width, batch_first=True)
        self.norm_fast = nn.LayerNorm(s.width)
        self.norm_slow = nn.LayerNorm(s.width)
        self.regime_fast = RegimeLayer(s)
        self.regime_slow = RegimeLayer(s)
        self.gauge = nn.Linear(s.width, s.n_gauge)

    def forward(self, forcing: Tensor, static: Tensor) -> Tensor:
        x = self.forcing(forcing) + self.static(static).unsqueeze(1)
        h, _ = self.fast(x)
        x = x + h
        x = x + self.regime_fast(self.norm_fast(x))
        h, _ = self.slow(x)
        x = x + h
        x = x + self.regime_slow(self.norm_slow(x))
        return F.softplus(self.gauge(x))    # m3/s is never negative


def make():
    torch.manual_seed(36)
    net = RiverNet()
    with torch.no_grad():
        net.gauge.weight.mul_(2.5)
        for m in net.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.add_(0.2 * torch.randn_like(m.weight))
                m.bias.add_(0.15 * torch.randn_like(m.bias))
            if isinstance(m, RegimeLayer):
                m.score.weight.mul_(4.0)
    rain = torch.distributions.Gamma(0.6, 0.7).sample((2, 36, 1))
    rest = torch.randn(2, 36, 4)
    return net.eval(), (torch.cat([rain, rest], -1), torch.randn(2, 9))
