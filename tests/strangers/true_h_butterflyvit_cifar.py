"""ButterflyViT for CIFAR, reimplemented line by line from Algorithms 1 and 2.

  form        W_down . B(phi_i) . GELU(W_hat . B(theta_i) x)
  rotation    strided even/odd channels, written back by stack+flatten; L = log2(padded width) on both sides
  shuffle     after each rotation, deinterleave: cat(x[0::2], x[1::2])
  handedness  untransposed on both sides; (a, b) -> (a cos - b sin, a sin + b cos)
  widths      d 48 -> 64, F 96 -> 128, zero-padded once around all layers, stripped after
  quantiser   per-tensor gamma = mean |W|, round and clip to {-1, 0, 1}, straight-through
  router      linear without bias, gates are the raw top-2 logits (as printed); E = 8
  biases      none inside the experts; W_down is a float matrix
  dispatch    masked loop over experts; returns (logits, balance loss)
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class ButterflyViTConfig:
    image_size: int = 24
    patch_size: int = 4
    num_classes: int = 10
    d_model: int = 48
    d_ff: int = 96
    num_heads: int = 4
    num_layers: int = 2
    num_experts: int = 8
    top_k: int = 2


def next_pow2(n):
    return 1 << (n - 1).bit_length()


class ButterflyRotation(nn.Module):
    """Algorithm 1. B(theta) for one expert."""

    def __init__(self, dim, num_layers=None):
        super().__init__()
        self.dim = dim
        self.padded = next_pow2(dim)
        self.num_layers = num_layers or int(math.log2(self.padded))
        self.angles = nn.Parameter(torch.empty(self.num_layers, self.padded // 2))
        nn.init.normal_(self.angles, std=0.5)

    def forward(self, x):
        if self.padded != self.dim:
            x = F.pad(x, (0, self.padded - self.dim))
        for layer in range(self.num_layers):
            theta = self.angles[layer]
            cos, sin = torch.cos(theta), torch.sin(theta)
            even, odd = x[..., 0::2], x[..., 1::2]
            new_even = cos * even - sin * odd
            new_odd = sin * even + cos * odd
            x = torch.stack([new_even, new_odd], dim=-1).flatten(-2)
            x = torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)
        return x[..., : self.dim]


class TernarySubstrate(nn.Module):
    """The shared prototype. Eq. (5): W_hat = gamma * RoundClip(W / (gamma + eps), -1, 1)."""

    def __init__(self, d_in, d_out):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_out, d_in) / math.sqrt(d_in))

    def forward(self):
        gamma = self.weight.abs().mean()
        q = torch.clamp(torch.round(self.weight / (gamma + 1e-8)), -1, 1) * gamma
        return self.weight + (q - self.weight).detach()


class ButterflyMoE(nn.Module):
    """Algorithm 2."""

    def __init__(self, cfg):
        super().__init__()
        self.num_experts, self.top_k = cfg.num_experts, cfg.top_k
        self.gate = nn.Linear(cfg.d_model, cfg.num_experts, bias=False)
        self.substrate = TernarySubstrate(cfg.d_model, cfg.d_ff)
        self.w_down = nn.Parameter(torch.randn(cfg.d_model, cfg.d_ff) / math.sqrt(cfg.d_ff))
        self.theta = nn.ModuleList([ButterflyRotation(cfg.d_model) for _ in range(cfg.num_experts)])
        self.phi = nn.ModuleList([ButterflyRotation(cfg.d_ff) for _ in range(cfg.num_experts)])

    def forward(self, x):
        B, N, D = x.shape
        x = x.reshape(B * N, D)
        logits = self.gate(x)
        gates, indices = torch.topk(logits, self.top_k, dim=-1)
        w_hat = self.substrate()

        y = torch.zeros_like(x)
        for i in range(self.num_experts):
            mask = (indices == i).any(dim=-1)
            if not mask.any():
                continue
            g = (gates * (indices == i)).sum(dim=-1, keepdim=True)[mask]
            h = self.theta[i](x[mask])
            h = F.gelu(h @ w_hat.t())
            h = self.phi[i](h)
            y[mask] += g * (h @ self.w_down.t())

        probs = F.softmax(logits, dim=-1).mean(dim=0)
        load = F.one_hot(indices, self.num_experts).sum(dim=1).to(x.dtype).mean(dim=0)
        balance = self.num_experts * (probs * load).sum() / self.top_k
        return y.reshape(B, N, D), balance


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        B, N, D = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        attn = (q @ k.transpose(-2, -1)) * (D // self.heads) ** -0.5
        x = attn.softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.d_model)
        self.attn = Attention(cfg.d_model, cfg.num_heads)
        self.norm2 = nn.LayerNorm(cfg.d_model)
        self.moe = ButterflyMoE(cfg)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        y, balance = self.moe(self.norm2(x))
        return x + y, balance


class ButterflyViT(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        n = (cfg.image_size // cfg.patch_size) ** 2
        self.patch_embed = nn.Conv2d(3, cfg.d_model, cfg.patch_size, cfg.patch_size)
        self.cls_token = nn.Parameter(torch.randn(1, 1, cfg.d_model))
        self.pos_embed = nn.Parameter(0.3 * torch.randn(1, n + 1, cfg.d_model))
        self.blocks = nn.ModuleList([Block(cfg) for _ in range(cfg.num_layers)])
        self.norm = nn.LayerNorm(cfg.d_model)
        self.head = nn.Linear(cfg.d_model, cfg.num_classes)

    def forward(self, images):
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.size(0), -1, -1), x], dim=1) + self.pos_embed
        total = x.new_zeros(())
        for block in self.blocks:
            x, balance = block(x)
            total = total + balance
        return self.head(self.norm(x)[:, 0]), total / len(self.blocks)


def make():
    torch.manual_seed(1312)
    model = ButterflyViT(ButterflyViTConfig())
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.copy_(1 + 0.2 * torch.randn_like(m.weight))
                m.bias.normal_(std=0.1)
            elif isinstance(m, (nn.Linear, nn.Conv2d)) and m.bias is not None:
                m.bias.normal_(std=0.1)
            if isinstance(m, ButterflyMoE):
                m.gate.weight.normal_(std=0.2)
    return model.eval(), (torch.randn(2, 3, 24, 24),)
