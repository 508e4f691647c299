"""minGPT with its MLP swapped for a Butterfly mixture of experts.

- ButterflyLinear: radix-2 butterfly by recursion, each call halves the width; strides 1, 2, 4, ... up to n/2, so there is no
  shuffle and the depth is the full log2 (L = 5 for n_embd = 32, L = 6 for the hidden 64).
- handedness: the transpose B(theta)^T goes in, B(phi) comes out.
- router: linear + sigmoid, top-1 (the gate is the winner's sigmoid); forward also gives back a load-balancing loss.
- quantiser: W_hat from float weights with straight-through, absmean per tensor; c_proj (W_down) stays float.
- biases: c_fc bias shared by the experts before the output butterfly, c_proj bias added once, after the experts are combined.
- form: W_down . GELU(B(phi) . (W_hat . B(theta)^T x + b)), tanh GELU (the minGPT one) after B(phi).
- dispatch: ModuleList of experts, nonzero() + index_copy per expert.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    vocab_size: int = 61
    block_size: int = 32
    n_layer: int = 3
    n_head: int = 4
    n_embd: int = 32
    n_hidden: int = 64
    n_expert: int = 5


class NewGELU(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class ButterflyLinear(nn.Module):
    """n -> n orthogonal map with (n / 2) log2(n) angles. Stage s pairs channels at distance 2^s."""

    def __init__(self, n, transposed=False):
        super().__init__()
        assert n & (n - 1) == 0, "radix-2 only"
        self.n = n
        self.n_stage = n.bit_length() - 1
        self.transposed = transposed
        self.theta = nn.Parameter(torch.randn(self.n_stage, n // 2) * 0.02)

    def twiddle(self, stage, x, n):
        # x: (..., groups, 2, n//2), the last stage done on a block of width n
        t = self.theta[stage].view(self.n // n, n // 2)
        c, s = t.cos(), t.sin()
        if self.transposed:
            s = -s
        top, bot = x[..., 0, :], x[..., 1, :]
        return torch.stack((c * top - s * bot, s * top + c * bot), dim=-2)

    def decimate(self, x):
        # x: (..., groups, n)
        g, n = x.size(-2), x.size(-1)
        if n == 1:
            return x
        stage = n.bit_length() - 2
        x = x.view(*x.shape[:-2], g, 2, n // 2)
        if self.transposed:  # widest stage first
            x = self.twiddle(stage, x, n)
            x = self.decimate(x.reshape(*x.shape[:-3], g * 2, n // 2))
            return x.reshape(*x.shape[:-2], g, n)
        y = self.decimate(x.reshape(*x.shape[:-3], g * 2, n // 2))
        y = y.view(*y.shape[:-2], g, 2, n // 2)
        y = self.twiddle(stage, y, n)
        return y.reshape(*y.shape[:-3], g, n)

    def forward(self, x):
        return self.decimate(x.unsqueeze(-2)).squeeze(-2)


class TernaryLinear(nn.Linear):
    def forward(self, x):
        gamma = self.weight.abs().mean()
        w_q = gamma * (self.weight / (gamma + 1e-8)).round().clamp(-1, 1)
        w_q = self.weight + (w_q - self.weight).detach()
        return F.linear(x, w_q, self.bias)


class Expert(nn.Module):
    """Only angles live here, the matrices are passed in by the mixture."""

    def __init__(self, config):
        super().__init__()
        self.rot_in = ButterflyLinear(config.n_embd, transposed=True)
        self.rot_out = ButterflyLinear(config.n_hidden)

    def forward(self, x, c_fc, act):
        return act(self.rot_out(c_fc(self.rot_in(x))))


class ButterflyMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_expert = config.n_expert
        self.n_hidden = config.n_hidden
        self.gate = nn.Linear(config.n_embd, config.n_expert)
        self.experts = nn.ModuleList([Expert(config) for _ in range(config.n_expert)])
        self.c_fc = TernaryLinear(config.n_embd, config.n_hidden)
        self.c_proj = nn.Linear(config.n_hidden, config.n_embd)
        self.act = NewGELU()

    def forward(self, x):
        B, T, C = x.size()
        x = x.view(B * T, C)
        score = torch.sigmoid(self.gate(x))
        weight, choice = score.max(dim=-1)

        h = x.new_zeros(B * T, self.n_hidden)
        for i, expert in enumerate(self.experts):
            rows = (choice == i).nonzero(as_tuple=True)[0]
            if rows.numel() == 0:
                continue
            out = expert(x[rows], self.c_fc, self.act)
            h = h.index_copy(0, rows, out * weight[rows, None])
        # the projection is linear and common to all, so it goes after the combination
        y = self.c_proj(h)

        load = F.one_hot(choice, self.n_expert).to(score.dtype).mean(0)
        importance = (score / score.sum(-1, keepdim=True)).mean(0)
        aux = self.n_expert * (load * importance).sum()
        return y.view(B, T, C), aux


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config.n_embd % config.n_head == 0
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        mask = torch.tril(torch.ones(config.block_size, config.block_size, dtype=torch.bool))
        self.register_buffer("mask", mask[None, None])
        self.n_head = config.n_head
        self.n_embd = config.n_embd

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = [t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v)]
        att = (q @ k.transpose(-2, -1)) / math.sqrt(k.size(-1))
        att = att.masked_fill(~self.mask[:, :, :T, :T], float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = ButterflyMLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        y, aux = self.mlp(self.ln_2(x))
        return x + y, aux


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, idx):
        b, t = idx.size()
        assert t <= self.config.block_size
        pos = torch.arange(t, device=idx.device)
        x = self.wte(idx) + self.wpe(pos)
        total = 0.0
        for block in self.h:
            x, aux = block(x)
            total = total + aux
        return self.lm_head(self.ln_f(x)), total / len(self.h)


def make():
    torch.manual_seed(2203)
    model = GPT(GPTConfig())
    for name, p in model.named_parameters():
        if name.endswith("theta"):
            nn.init.normal_(p, std=0.5)
        elif ".ln_" in name or name.startswith("ln_"):
            nn.init.normal_(p, mean=1.0 if name.endswith("weight") else 0.0, std=0.15)
        elif name.endswith("bias"):
            nn.init.normal_(p, std=0.2)
        elif "gate" in name:
            nn.init.normal_(p, std=0.4)
    return model.eval(), (torch.randint(0, 61, (2, 27)),)
