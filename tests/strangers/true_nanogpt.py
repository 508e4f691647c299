"""nanoButterflyGPT: nanoGPT with the MLP swapped for a butterfly MoE.

Rotations RoPE style: pairs (2j, 2j+1) viewed as complex numbers times polar(1, angle); the shuffle after the rotation is
the deinterleave, i.e. cat(real, imag). Per-token angles are gathered, theta[idx] -> (T, k, L, n/2), so there is no loop over
experts. n_embd=48 and n_ff=96 are zero-padded to 64 and 128 and stripped after. ViT form (Algorithm 2), tanh GELU
before B(phi), per-tensor gamma with the detach trick, float W_down without bias. Gates: sigmoid, top-2, raw (no renorm).
Tied wte / lm_head.
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
    n_head: int = 3
    n_embd: int = 48
    n_ff: int = 96
    n_expert: int = 8
    n_active: int = 2
    n_rot_in: int = 4
    n_rot_out: int = 2
    bias: bool = True # biases in LayerNorm and attention


class LayerNorm(nn.Module):
    """ LayerNorm but with an optional bias. """

    def __init__(self, ndim, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = nn.Parameter(torch.zeros(ndim)) if bias else None

    def forward(self, input):
        return F.layer_norm(input, self.weight.shape, self.weight, self.bias, 1e-5)


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


def butterfly(x, ang):
    # x: (..., n), ang: (..., L, n'/2) with n' = next power of two
    n = x.size(-1)
    x = F.pad(x, (0, 2 * ang.size(-1) - n))
    for a in ang.unbind(-2):
        z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        z = z * torch.polar(torch.ones_like(a), a)
        x = torch.cat((z.real, z.imag), dim=-1) # == cat(x[..., 0::2], x[..., 1::2])
    return x[..., :n]


def bitw(w):
    g = w.abs().mean()
    wq = (w / (g + 1e-8)).round().clamp(-1, 1) * g
    return w + (wq - w).detach()


class ButterflyMoE(nn.Module):

    def __init__(self, config):
        super().__init__()
        half = lambda n: 2 ** math.ceil(math.log2(n)) // 2
        self.k = config.n_active
        self.gate = nn.Linear(config.n_embd, config.n_expert, bias=False)
        self.c_fc = nn.Parameter(torch.empty(config.n_ff, config.n_embd))
        self.c_proj = nn.Linear(config.n_ff, config.n_embd, bias=False)
        self.theta = nn.Parameter(torch.empty(config.n_expert, config.n_rot_in, half(config.n_embd)))
        self.phi = nn.Parameter(torch.empty(config.n_expert, config.n_rot_out, half(config.n_ff)))
        nn.init.normal_(self.c_fc, std=0.15)
        nn.init.normal_(self.theta, std=0.5)
        nn.init.normal_(self.phi, std=0.5)

    def forward(self, x):
        B, T, C = x.size()
        x = x.view(-1, C)
        p, idx = self.gate(x).sigmoid().topk(self.k, dim=-1) # (BT, k)
        h = butterfly(x.unsqueeze(1).expand(-1, self.k, -1), self.theta[idx]) # (BT, k, C)
        h = F.gelu(F.linear(h, bitw(self.c_fc)), approximate='tanh')
        h = butterfly(h, self.phi[idx]) # (BT, k, n_ff)
        y = (self.c_proj(h) * p.unsqueeze(-1)).sum(1)
        return y.view(B, T, C)


class Block(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias)
        self.moe = ButterflyMoE(config)

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
            ln_f = LayerNorm(config.n_embd, bias=config.bias),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight # weight tying
        self.apply(self._init_weights)

    def _init_weights(self, module):
        # wide init, so that the toy behaves like something that has been trained for a while
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.18)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.4)
        elif isinstance(module, LayerNorm):
            nn.init.normal_(module.weight, mean=1.0, std=0.2)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)

    def forward(self, idx):
        b, t = idx.size()
        assert t <= self.config.block_size
        pos = torch.arange(0, t, dtype=torch.long, device=idx.device)
        x = self.transformer.wte(idx) + self.transformer.wpe(pos)
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


def make():
    torch.manual_seed(1337)
    config = GPTConfig()
    model = GPT(config)
    model.eval()
    return model, (torch.randint(config.vocab_size, (2, 24)),)
