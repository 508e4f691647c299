"""
Character LM in nanoGPT manner with RWKV token shift in its butterfly experts.

shuffle    : interleave the halves after the rotation; B(phi) . W_hat . B(theta)^T x, then GELU, shared W_down
L          : 3 and 3; d = 32, F = 64
router     : softmax over all, top-2, not renormalised
quantiser  : round/clip, gamma = mean|W| per tensor
biases     : shared up bias; down bias weighted by the gate
dispatch   : every expert on the whole sequence, weights scattered to [B, T, E]
NOT a Butterfly layer: between B(theta)^T and W_hat each channel is blended with the previous token's rotated channel
(a per-channel mix that does not commute with the rotation), so an expert reads two tokens.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    block_size: int = 32
    vocab_size: int = 65
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 32
    n_expert: int = 5
    top_k: int = 2
    depth: int = 3


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.register_buffer("mask", torch.tril(torch.ones(config.block_size, config.block_size)).bool())
        self.n_head, self.n_embd = config.n_head, config.n_embd

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = [t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v)]
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(~self.mask[:T, :T], float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


def rotate(x, ang):
    for a in ang:
        x1, x2 = x[..., 0::2], x[..., 1::2]
        x = torch.stack((x1 * a.cos() - x2 * a.sin(), x1 * a.sin() + x2 * a.cos()), -1).flatten(-2)
        top, bot = x.chunk(2, dim=-1)
        x = torch.stack((top, bot), dim=-1).flatten(-2)
    return x


def rotate_t(x, ang):
    for a in ang.flip(0):
        x = torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
        x1, x2 = x[..., 0::2], x[..., 1::2]
        x = torch.stack((x1 * a.cos() + x2 * a.sin(), x2 * a.cos() - x1 * a.sin()), -1).flatten(-2)
    return x


class ButterflyMoE(nn.Module):
    def __init__(self, config):
        super().__init__()
        C, E = config.n_embd, config.n_expert
        self.top_k = config.top_k
        self.gate = nn.Linear(C, E, bias=False)
        self.c_fc = nn.Linear(C, 2 * C)
        self.c_proj = nn.Linear(2 * C, C)
        self.time_mix = nn.Parameter(torch.rand(C))
        self.time_shift = nn.ZeroPad2d((0, 0, 1, -1))
        self.theta = nn.Parameter(torch.randn(E, config.depth, C // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(E, config.depth, C) * 0.5)

    def ternary(self):
        w = self.c_fc.weight
        gamma = w.abs().mean()
        return w + (gamma * (w / (gamma + 1e-8)).round().clamp(-1, 1) - w).detach()

    def forward(self, x):
        probs = F.softmax(self.gate(x), dim=-1)
        val, idx = probs.topk(self.top_k, dim=-1)
        weights = torch.zeros_like(probs).scatter(-1, idx, val)
        w = self.ternary()
        y = 0
        for e, (theta, phi) in enumerate(zip(self.theta, self.phi)):
            h = rotate_t(x, theta)
            h = h * self.time_mix + self.time_shift(h) * (1 - self.time_mix)
            h = rotate(F.linear(h, w, self.c_fc.bias), phi)
            y = y + weights[..., e, None] * self.c_proj(F.gelu(h))
        return y


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.moe = ButterflyMoE(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        x = x + self.moe(self.ln_2(x))
        return x


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            h=nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
            ln_f=nn.LayerNorm(config.n_embd),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, idx):
        pos = torch.arange(idx.size(1), device=idx.device)
        x = self.transformer.wte(idx) + self.transformer.wpe(pos)
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


def make():
    torch.manual_seed(722)
    model = GPT(GPTConfig())
    for pn, p in model.named_parameters():
        if pn.endswith(".bias"):
            torch.nn.init.normal_(p, 0.0, 0.1)
        elif ".ln_" in pn:
            torch.nn.init.normal_(p, 1.0, 0.15)
        elif pn.endswith("gate.weight"):
            torch.nn.init.normal_(p, 0.0, 0.35)
    return model.eval(), (torch.randint(0, 65, (2, 28)),)
