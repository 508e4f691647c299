"""
nanoButterflyGPT: GPT with the MLP swapped for a butterfly MoE, everything in this one file.
- rotation: no shuffle, FFT strides 1,2,4,... (pairs i, i+stride), angles (L, n/2); rotates clockwise
  (a,b) -> (ca + sb, cb - sa) on both sides
- depth: all of log2 n, i.e. 6 layers in (d=64), 7 out (F=128)
- router: nn.Linear no bias, top-2 of 8 logits, then softmax over those two
- ternary: TWN style, zero where |w| <= 0.7 mean|w|, else +-mean|w|, per tensor, STE
- gelu tanh AFTER the second butterfly: W_down gelu(B(phi) (W_hat B(theta) x + b_fc))
- biases: b_fc inside right after W_hat; b_proj added once after all experts are summed
- experts: nn.ModuleList, each holds angles only, c_fc weight gets passed in; W_down float, pulled out of the sum over experts
- dispatch: loop over experts, torch.where + index_add_
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    block_size: int = 24
    vocab_size: int = 65
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 64
    n_ff: int = 128
    n_expert: int = 8
    top_k: int = 2


def butterfly(x, ang):
    T, n = x.shape
    for l, a in enumerate(ang):
        s = 1 << l
        cos, sin = a.cos().view(-1, s), a.sin().view(-1, s)
        u, v = x.view(T, n // (2 * s), 2, s).unbind(2)
        x = torch.stack((cos * u + sin * v, cos * v - sin * u), 2).view(T, n)
    return x


def ternarize(w):
    m = w.abs().mean()
    q = m * w.sign() * (w.abs() > 0.7 * m).to(w.dtype)
    return w + (q - w).detach()


class Expert(nn.Module):
    # just angles, the weights live in MoE
    def __init__(self, c):
        super().__init__()
        self.rin = nn.Parameter(0.5 * torch.randn(int(math.log2(c.n_embd)), c.n_embd // 2))
        self.rout = nn.Parameter(0.5 * torch.randn(int(math.log2(c.n_ff)), c.n_ff // 2))

    def forward(self, x, w, b):
        return F.gelu(butterfly(F.linear(butterfly(x, self.rin), w, b), self.rout), approximate='tanh')


class MoE(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.k = c.top_k
        self.gate = nn.Linear(c.n_embd, c.n_expert, bias=False)
        self.c_fc = nn.Linear(c.n_embd, c.n_ff)
        self.c_proj = nn.Linear(c.n_ff, c.n_embd)
        self.experts = nn.ModuleList([Expert(c) for _ in range(c.n_expert)])

    def forward(self, x):
        B, T, C = x.size()
        x = x.view(-1, C)
        w, idx = torch.topk(self.gate(x), self.k)
        w = F.softmax(w, dim=-1)
        wq = ternarize(self.c_fc.weight)
        h = x.new_zeros(B * T, self.c_fc.out_features)
        for i, e in enumerate(self.experts):
            t, s = torch.where(idx == i)
            h.index_add_(0, t, e(x[t], wq, self.c_fc.bias) * w[t, s, None])
        return self.c_proj(h).view(B, T, C)


class CausalSelfAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c_attn = nn.Linear(c.n_embd, 3 * c.n_embd)
        self.c_proj = nn.Linear(c.n_embd, c.n_embd)
        self.n_head = c.n_head

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in self.c_attn(x).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(c.n_embd), CausalSelfAttention(c)
        self.ln_2, self.mlp = nn.LayerNorm(c.n_embd), MoE(c)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config = c
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(c.vocab_size, c.n_embd),
            wpe=nn.Embedding(c.block_size, c.n_embd),
            h=nn.ModuleList([Block(c) for _ in range(c.n_layer)]),
            ln_f=nn.LayerNorm(c.n_embd),
        ))
        self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight  # weight tying

    def forward(self, idx):
        _, t = idx.size()
        assert t <= self.config.block_size
        pos = torch.arange(t, device=idx.device)
        x = self.transformer.wte(idx) + self.transformer.wpe(pos)
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


def make():
    torch.manual_seed(1337)
    model = GPT(GPTConfig())
    for n, p in model.named_parameters():
        if 'ln_' in n and n.endswith('weight'):
            nn.init.uniform_(p, 0.75, 1.25)
        elif n.endswith('bias'):
            nn.init.normal_(p, std=0.1)
        elif n.endswith('gate.weight'):
            nn.init.normal_(p, std=0.3)
        elif 'wte' in n or 'wpe' in n:
            nn.init.normal_(p, std=0.4)
    return model.eval(), (torch.randint(0, 65, (2, 24)),)


if __name__ == '__main__':
    model, (idx,) = make()
    with torch.no_grad():
        logits = model(idx)
    print(sum(p.numel() for p in model.parameters()) / 1e3, 'K params')
    print(logits.shape, F.cross_entropy(logits[:, :-1].reshape(-1, 65), idx[:, 1:].reshape(-1)).item())
