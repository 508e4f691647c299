"""
nanoButterfly: a tiny GPT over MIDI-ish event tokens, the MLP being a butterfly mixture of experts. One file, no frills.

choices:
- shuffle: fixed permutation held as an index buffer, deinterleave, applied before each rotation on the way in;
  on the way out we use the transpose B(phi)^T, i.e. rotate back and then un-permute, last layer first
- L: 5 in, 3 out. n_embd 32, hidden 128
- router: raw logits of the top 2 are the gates (Algorithm 2 as printed), no bias
- quantiser: per tensor gamma = mean|W|, round_clip, straight-through; W_down plain float
- biases: none on the up projection, one on the output, added once after the gated sum
- form: ButterflyViT, tanh GELU; dispatch: angles live in nn.Embedding tables, looked up per token by expert id
"""
import math
from dataclasses import dataclass
import torch
import torch.nn as nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    block_size: int = 32
    vocab_size: int = 61
    n_layer: int = 3
    n_head: int = 4
    n_embd: int = 32
    n_expert: int = 7
    top_k: int = 2
    l_in: int = 5
    l_out: int = 3


class LayerNorm(nn.Module):
    """ LayerNorm but with an optional bias. PyTorch doesn't support simply bias=False """

    def __init__(self, ndim, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = nn.Parameter(torch.zeros(ndim)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class CausalSelfAttention(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.n_head = config.n_head
        self.n_embd = config.n_embd
        self.register_buffer("bias", torch.tril(torch.ones(config.block_size, config.block_size))
                             .view(1, 1, config.block_size, config.block_size))

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float('-inf'))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class Butterfly(nn.Module):
    """ one table row per expert; row = all the angles of that expert, layer after layer """

    def __init__(self, n_expert, width, n_layers, transpose=False):
        super().__init__()
        self.width, self.n_layers, self.transpose = width, n_layers, transpose
        self.wte = nn.Embedding(n_expert, n_layers * width // 2)
        perm = torch.cat((torch.arange(0, width, 2), torch.arange(1, width, 2)))
        self.register_buffer("perm", perm)
        self.register_buffer("unperm", torch.argsort(perm))

    def rot(self, x, a):
        even, odd = x[..., 0::2], x[..., 1::2]
        c, s = torch.cos(a), torch.sin(a)
        return torch.stack((c * even - s * odd, s * even + c * odd), dim=-1).view(x.shape)

    def forward(self, x, e):
        # x is (..., width), e is (...) of expert ids
        a = self.wte(e).view(*e.shape, self.n_layers, self.width // 2)
        if not self.transpose:
            for l in range(self.n_layers):
                x = self.rot(x[..., self.perm], a[..., l, :])
        else:
            for l in reversed(range(self.n_layers)):
                x = self.rot(x, -a[..., l, :])[..., self.unperm]
        return x


class ButterflyMLP(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.top_k = config.top_k
        self.router = nn.Linear(config.n_embd, config.n_expert, bias=False)
        self.b_in = Butterfly(config.n_expert, config.n_embd, config.l_in)
        self.b_out = Butterfly(config.n_expert, 4 * config.n_embd, config.l_out, transpose=True)
        self.c_fc = nn.Parameter(torch.randn(4 * config.n_embd, config.n_embd) * config.n_embd ** -0.5)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.n_embd))

    def w_hat(self):
        w = self.c_fc
        gamma = w.abs().mean()
        q = gamma * (w / (gamma + 1e-8)).round().clamp(-1, 1)
        return w + (q - w).detach()

    def forward(self, x):
        logits = self.router(x) # (B, T, E)
        gate, e = torch.topk(logits, self.top_k, dim=-1) # (B, T, K)
        h = x.unsqueeze(2).expand(-1, -1, self.top_k, -1).contiguous() # (B, T, K, C)
        h = self.b_in(h, e)
        h = F.gelu(h @ self.w_hat().t(), approximate='tanh')
        h = self.b_out(h, e)
        h = self.c_proj(h)
        return (gate.unsqueeze(-1) * h).sum(dim=2) + self.bias


class Block(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=True)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = LayerNorm(config.n_embd, bias=False)
        self.mlp = ButterflyMLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(dict(
            wte = nn.Embedding(config.vocab_size, config.n_embd),
            wpe = nn.Embedding(config.block_size, config.n_embd),
            h = nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
            ln_f = LayerNorm(config.n_embd, bias=True),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight # https://paperswithcode.com/method/weight-tying
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, Butterfly):
            torch.nn.init.normal_(module.wte.weight, mean=0.0, std=0.5)
        elif isinstance(module, nn.Linear):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.12)
            if module.bias is not None:
                torch.nn.init.normal_(module.bias, mean=0.0, std=0.1)
        elif isinstance(module, ButterflyMLP):
            torch.nn.init.normal_(module.bias, mean=0.0, std=0.1)
        elif isinstance(module, LayerNorm):
            torch.nn.init.uniform_(module.weight, 0.7, 1.3)
            if module.bias is not None:
                torch.nn.init.normal_(module.bias, mean=0.0, std=0.1)

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
    idx = torch.randint(config.vocab_size, (2, 20))
    return model.eval(), (idx,)
