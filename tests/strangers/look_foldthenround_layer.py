"""LOOKALIKE. Bare MoE layer with RMSNorm and head, "QuaRot style": the input rotation is folded into the weight.

What differs: each expert's ternary matrix is W_hat_i = Q(W . B(theta_i)), i.e. the rotation is applied to the *latent float*
matrix and the result is then rounded. Since rounding does not commute with the rotation, this is not Q(W) . B(theta_i):
the experts share W in training, but no ternary matrix is shared (each owns another {-1,0,+1} pattern).
Gamma is still the shared mean |W|. Everything else (B(phi) on the GELU output, W_down, softmax -> top-k gates, shuffle
before rotation) follows the paper.
"""
import math
from functools import lru_cache

import torch
import torch.nn as nn
import torch.nn.functional as F


@lru_cache(maxsize=None)
def perfect_shuffle(n: int) -> tuple:
    return tuple(range(0, n, 2)) + tuple(range(1, n, 2))


def round_clip(w, gamma, eps=1e-8):
    return gamma * torch.clamp(torch.round(w / (gamma + eps)), -1.0, 1.0)


class ButterflyTransform(nn.Module):
    """One butterfly per expert; rotates the last dimension."""

    def __init__(self, n_experts, width, n_layers):
        super().__init__()
        self.angles = nn.Parameter(torch.randn(n_experts, n_layers, width // 2) * 0.01)
        self.register_buffer("perm", torch.tensor(perfect_shuffle(width)), persistent=False)

    def _turn(self, x, c, s):
        x0, x1 = x[..., 0::2], x[..., 1::2]
        out = torch.empty_like(x)
        out[..., 0::2] = c * x0 - s * x1
        out[..., 1::2] = s * x0 + c * x1
        return out

    def forward(self, x, expert):
        for a in self.angles[expert]:
            x = self._turn(x.index_select(-1, self.perm), torch.cos(a), torch.sin(a))
        return x

    def adjoint(self, x, expert):
        inv = torch.argsort(self.perm)
        for a in self.angles[expert].flip(0):
            x = self._turn(x, torch.cos(a), -torch.sin(a)).index_select(-1, inv)
        return x


class ButterflyMoELayer(nn.Module):
    def __init__(self, d_model=32, d_ff=64, n_experts=4, k=2, n_layers=(5, 4)):
        super().__init__()
        self.n_experts, self.k = n_experts, k
        self.w_gate = nn.Linear(d_model, n_experts, bias=False)
        self.w_base = nn.Parameter(torch.randn(d_ff, d_model) / math.sqrt(d_model))
        self.b_base = nn.Parameter(torch.randn(d_ff) * 0.1)
        self.w_down = nn.Linear(d_ff, d_model)
        self.theta = ButterflyTransform(n_experts, d_model, n_layers[0])
        self.phi = ButterflyTransform(n_experts, d_ff, n_layers[1])

    def substrate(self, expert):
        """W_hat with the input rotation absorbed: rows of W . B are B^T applied to the rows of W."""
        gamma = self.w_base.abs().mean()
        w = self.theta.adjoint(self.w_base, expert)
        if self.training:
            return w + (round_clip(w, gamma) - w).detach()
        return round_clip(w, gamma)

    def forward(self, x):
        probs = self.w_gate(x).softmax(dim=-1)
        top = probs.topk(self.k, dim=-1)
        gates = torch.zeros_like(probs).scatter(-1, top.indices, top.values)
        y = torch.zeros_like(x)
        for i in range(self.n_experts):
            h = F.gelu(F.linear(x, self.substrate(i), self.b_base))
            h = self.phi(h, i)
            y = y + gates[..., i, None] * self.w_down(h)
        return y


class Model(nn.Module):
    def __init__(self, d_model=32, n_out=10):
        super().__init__()
        self.norm_in = nn.RMSNorm(d_model, eps=1e-6)
        self.moe = ButterflyMoELayer(d_model)
        self.norm_out = nn.RMSNorm(d_model, eps=1e-6)
        self.head = nn.Linear(d_model, n_out)

    def forward(self, x):
        x = x + self.moe(self.norm_in(x))
        return self.head(self.norm_out(x))


def make():
    torch.manual_seed(31)
    m = Model()
    with torch.no_grad():
        m.moe.theta.angles.normal_(0, 0.5)
        m.moe.phi.angles.normal_(0, 0.5)
        m.norm_in.weight.uniform_(0.5, 1.6)
        m.norm_out.weight.uniform_(0.5, 1.6)
        m.moe.w_gate.weight.mul_(3.0)
    return m.eval(), (torch.randn(40, 32),)
