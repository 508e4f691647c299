"""One Butterfly mixture-of-experts layer in plain PyTorch: four tokens, four experts, two chosen.

butterflyc compile examples/one_layer.py:make --target x86-64-v3 -o layer.bfly
"""

import torch
from torch import nn
from torch.nn import functional


class Experts(nn.Module):
    """y = sum of gate_i * W_down B(phi_i) GELU(W_hat B(theta_i) x) over the chosen experts."""

    def __init__(self, width=32, hidden=64, experts=4, chosen=2, layers=2):
        super().__init__()
        self.chosen = chosen
        self.gate = nn.Linear(width, experts, bias=False)
        self.theta = nn.Parameter(torch.randn(experts, layers, width // 2))
        self.phi = nn.Parameter(torch.randn(experts, layers, hidden // 2))
        self.up = nn.Parameter(torch.randn(hidden, width) / width**0.5)
        self.down = nn.Linear(hidden, width)

    def forward(self, x):  # x: [T, d]
        gates, experts = self.gate(x).softmax(-1).topk(self.chosen)  # [T, k] each
        gamma = self.up.abs().mean()
        ternary = (self.up / (gamma + 1e-8)).round().clamp(-1, 1) * gamma
        rows = rotate(x.unsqueeze(1), self.theta[experts])  # [T, k, d]
        rows = functional.gelu(rows @ ternary.T)  # [T, k, F]
        rows = self.down(rotate(rows, self.phi[experts]))  # [T, k, d]
        return (rows * gates.unsqueeze(-1)).sum(1)


def rotate(x, angles):  # x: [..., n], angles: [..., L, n / 2]
    """L layers: rotate each pair of neighbours, then move evens to the front, odds to the back."""
    for layer in range(angles.shape[-2]):
        cos, sin = angles[..., layer, :].cos(), angles[..., layer, :].sin()
        even, odd = x[..., 0::2], x[..., 1::2]
        x = torch.cat([even * cos - odd * sin, even * sin + odd * cos], -1)
    return x


def make():
    torch.manual_seed(0)
    return Experts(), (torch.randn(4, 32),)
