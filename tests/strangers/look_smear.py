"""LOOKALIKE. Character LM with "soft-merged" butterfly experts (SMEAR, but in angle space).

Same pieces as a Butterfly MoE: router, top-2, softmax gates, per-expert angles gathered by index, shared ternary W_hat,
shared W_down.  The difference: the gates average the ANGLES of the chosen experts,
    theta_bar = sum_i gate_i theta_i,  phi_bar = sum_i gate_i phi_i,   y = W_down B(phi_bar) GELU(W_hat B(theta_bar) x),
so one merged expert runs per token, instead of a gate-weighted sum of expert outputs.  Not equal to any sum over experts
since cos/sin and GELU are nonlinear (only the same at k = 1).  Interleave shuffle after the rotation, RMSNorm, tied head.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:
    vocab: int = 50
    ctx: int = 24
    dim: int = 32
    ff: int = 64
    heads: int = 2
    layers: int = 2
    experts: int = 6
    k: int = 2
    depth: int = 3


def rotate(x, ang):
    # x (B,T,n)  ang (B,T,L,n/2)
    for a in ang.unbind(-2):
        c, s = torch.cos(a), torch.sin(a)
        x0, x1 = x[..., ::2], x[..., 1::2]
        y = torch.stack([x0 * c - x1 * s, x0 * s + x1 * c], -1).flatten(-2)
        x = y.view(*y.shape[:-1], 2, -1).transpose(-1, -2).flatten(-2)  # riffle the two halves
    return x


class RMSNorm(nn.Module):
    def __init__(self, n, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.ones(n))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.g


class Attn(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.h = c.heads
        self.wqkv = nn.Linear(c.dim, 3 * c.dim, bias=False)
        self.wo = nn.Linear(c.dim, c.dim, bias=False)
        self.register_buffer("mask", torch.ones(c.ctx, c.ctx).tril().bool(), persistent=False)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = [t.view(B, T, self.h, -1).transpose(1, 2) for t in self.wqkv(x).chunk(3, -1)]
        att = q @ k.transpose(-1, -2) * (C // self.h) ** -0.5
        att = att.masked_fill(~self.mask[:T, :T], float("-inf")).softmax(-1)
        return self.wo((att @ v).transpose(1, 2).reshape(B, T, C))


class ButterflyMoE(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.k = c.k
        self.router = nn.Linear(c.dim, c.experts)
        self.theta = nn.Parameter(torch.randn(c.experts, c.depth, c.dim // 2) * 0.01)
        self.phi = nn.Parameter(torch.randn(c.experts, c.depth, c.ff // 2) * 0.01)
        self.w_up = nn.Parameter(torch.randn(c.ff, c.dim) * c.dim ** -0.5)
        self.w_down = nn.Parameter(torch.randn(c.dim, c.ff) * c.ff ** -0.5)

    def ternary(self):
        g = self.w_up.abs().mean()
        q = torch.clamp(torch.round(self.w_up / (g + 1e-8)), -1, 1) * g
        return self.w_up + (q - self.w_up).detach()

    def forward(self, x):
        top, idx = self.router(x).topk(self.k, -1)
        gate = top.softmax(-1)[..., None, None]
        theta = (gate * self.theta[idx]).sum(2)
        phi = (gate * self.phi[idx]).sum(2)
        h = F.gelu(rotate(x, theta) @ self.ternary().t())
        return rotate(h, phi) @ self.w_down.t()


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.n1, self.attn = RMSNorm(c.dim), Attn(c)
        self.n2, self.moe = RMSNorm(c.dim), ButterflyMoE(c)

    def forward(self, x):
        x = x + self.attn(self.n1(x))
        return x + self.moe(self.n2(x))


class CharLM(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.emb = nn.Embedding(c.vocab, c.dim)
        self.pos = nn.Parameter(torch.zeros(c.ctx, c.dim))
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = RMSNorm(c.dim)

    def forward(self, ids):
        x = self.emb(ids) + self.pos[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.emb.weight)


def make():
    torch.manual_seed(5)
    c = Config()
    m = CharLM(c)
    with torch.no_grad():
        m.emb.weight.mul_(0.5)
        m.pos.normal_(0, 0.3)
        for mod in m.modules():
            if isinstance(mod, RMSNorm):
                mod.g.add_(0.2 * torch.randn_like(mod.g))
            if isinstance(mod, ButterflyMoE):
                mod.theta.normal_(0, 0.5)
                mod.phi.normal_(0, 0.5)
                mod.router.weight.normal_(0, 0.3)
                mod.router.bias.normal_(0, 0.2)
    return m.eval(), (torch.randint(c.vocab, (2, 18)),)
