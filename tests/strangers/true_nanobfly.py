"""nanoButterfly: a nanoGPT with the MLP swapped for a butterfly MoE. One file, hackable.

- per-token angles are gathered (theta[idx]) so all chosen experts run in one batched go, no expert loop
- a Givens rotation of a channel pair is a complex multiply by e^{i*angle}, like RoPE in the llama code
- shuffle is a deinterleave BEFORE the rotation (eq. 4 order); n_ff = 96 is padded to 128 and stripped after
- router: top-k of the logits, then softmax over the k; tanh GELU; up weight ternary w/ per-tensor gamma (STE), c_proj float
- up bias before the GELU, c_proj applied once after the gated sum, its bias added once; wte tied to lm_head
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
    n_ff: int = 96
    n_expert: int = 8
    top_k: int = 2
    n_bfly_in: int = 4
    n_bfly_out: int = 2
    bias: bool = True


def pow2(n):
    return 2 ** math.ceil(math.log2(n))


def bfly(x, ang):
    # x (..., C), ang (..., L, P/2) with P = next pow2 of C
    C, P = x.size(-1), 2 * ang.size(-1)
    x = F.pad(x, (0, P - C))
    rot = torch.polar(torch.ones_like(ang), ang)
    for l in range(ang.size(-2)):
        x = torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
        z = torch.view_as_complex(x.reshape(*x.shape[:-1], P // 2, 2))
        x = torch.view_as_real(z * rot[..., l, :]).flatten(-2)
    return x[..., :C]


class CausalSelfAttention(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head = config.n_head
        self.n_embd = config.n_embd

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.c_proj(y)


class BitLinear(nn.Linear):

    def forward(self, x):
        w = self.weight
        gamma = w.abs().mean()
        wq = (w / (gamma + 1e-8)).round().clamp(-1, 1) * gamma
        return F.linear(x, w + (wq - w).detach(), self.bias)


class MoE(nn.Module):

    def __init__(self, config):
        super().__init__()
        E = config.n_expert
        self.top_k = config.top_k
        self.gate = nn.Linear(config.n_embd, E, bias=False)
        self.theta = nn.Parameter(0.01 * torch.randn(E, config.n_bfly_in, pow2(config.n_embd) // 2))
        self.phi = nn.Parameter(0.01 * torch.randn(E, config.n_bfly_out, pow2(config.n_ff) // 2))
        self.c_fc = BitLinear(config.n_embd, config.n_ff, bias=config.bias)
        self.c_proj = nn.Linear(config.n_ff, config.n_embd, bias=config.bias)

    def forward(self, x):
        logits, idx = torch.topk(self.gate(x), self.top_k, dim=-1) # (B, T, k)
        w = F.softmax(logits, dim=-1)
        h = x.unsqueeze(2).expand(-1, -1, self.top_k, -1) # (B, T, k, C)
        h = bfly(h, self.theta[idx])
        h = F.gelu(self.c_fc(h), approximate='tanh')
        h = bfly(h, self.phi[idx])
        return self.c_proj((w.unsqueeze(-1) * h).sum(2))


class Block(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.moe = MoE(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        x = x + self.moe(self.ln_2(x))
        return x


class GPT(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(dict(
            wte = nn.Embedding(config.vocab_size, config.n_embd),
            wpe = nn.Embedding(config.block_size, config.n_embd),
            h = nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
            ln_f = nn.LayerNorm(config.n_embd, bias=config.bias),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx):
        b, t = idx.size()
        assert t <= self.config.block_size
        pos = torch.arange(0, t, dtype=torch.long, device=idx.device)
        x = self.transformer.wte(idx) + self.transformer.wpe(pos)
        for block in self.transformer.h:
            x = block(x)
        x = self.transformer.ln_f(x)
        return self.lm_head(x)


def make():
    torch.manual_seed(1337)
    model = GPT(GPTConfig())
    # pretend it was trained
    with torch.no_grad():
        for n, p in model.named_parameters():
            if n.endswith('theta') or n.endswith('phi'):
                p.normal_(0, 0.5)
            elif n.endswith('gate.weight'):
                p.normal_(0, 0.4)
            elif n.endswith('bias'):
                p.normal_(0, 0.1)
            elif 'ln_' in n:
                p.add_(0.2 * torch.randn_like(p))
            elif 'wte' in n or 'wpe' in n:
                p.normal_(0, 0.5)
    model.eval()
    return model, (torch.randint(0, 65, (2, 20)),)
