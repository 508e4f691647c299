"""LOOKALIKE. Causal LM with butterfly experts over one shared latent weight, big-LM coding style.

Differs in one thing: the weight is ternarised AFTER the rotation, in each expert's own basis (as QuaRot-like work does:
rotations spread outliers, so quantise in the rotated basis). Expert i computes ternary(W . B(theta_i)) x, not
ternary(W) . B(theta_i) x; ternary() does not commute with the rotation, so experts share only the latent W and every
expert has another ternary matrix (no common W_hat). All else follows the paper: GELU, B(phi_i), shared float down_proj,
angles the only per-expert parameters, softmax -> top-2 -> renormalise, one_hot dispatch.
"""
import math
from typing import List

import torch
import torch.nn as nn
import torch.nn.functional as F


def ternary(w: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    gamma = w.abs().mean()
    w_hat = gamma * (w / (gamma + eps)).round().clamp(-1, 1)
    return w + (w_hat - w).detach()


def apply_butterfly(x: torch.Tensor, angles: torch.Tensor, inverse: bool = False) -> torch.Tensor:
    """Rows of x are rotated: complex-number view of the pairs, then (de)interleave."""
    layers: List[torch.Tensor] = list(angles.unbind(0))
    n = x.size(-1)
    if not inverse:
        for a in layers:
            re, im = x.view(*x.shape[:-1], n // 2, 2).unbind(-1)
            cos, sin = a.cos(), a.sin()
            x = torch.cat((re * cos - im * sin, re * sin + im * cos), dim=-1)
    else:
        for a in reversed(layers):
            re, im = x.chunk(2, dim=-1)
            cos, sin = a.cos(), a.sin()
            x = torch.stack((re * cos + im * sin, im * cos - re * sin), dim=-1).flatten(-2)
    return x


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return F.rms_norm(x, (x.size(-1),), self.weight, self.eps)


class SharedExperts(nn.Module):
    def __init__(self, dim, hidden, num_experts, n_in, n_out):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden, dim))
        self.down = nn.Parameter(torch.empty(dim, hidden))
        self.theta = nn.Parameter(torch.empty(num_experts, n_in, dim // 2))
        self.phi = nn.Parameter(torch.empty(num_experts, n_out, hidden // 2))

    def forward(self, x, e: int):
        # W B(theta): the rows of W go through B(theta)^T
        w = ternary(apply_butterfly(self.weight, self.theta[e], inverse=True))
        h = F.gelu(x @ w.t())
        return apply_butterfly(h, self.phi[e]) @ self.down.t()


class MoEFeedForward(nn.Module):
    def __init__(self, dim, hidden, num_experts, top_k, n_in, n_out):
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k
        self.router = nn.Linear(dim, num_experts, bias=False)
        self.experts = SharedExperts(dim, hidden, num_experts, n_in, n_out)

    def forward(self, x):
        b, t, d = x.shape
        x = x.view(-1, d)
        probs = self.router(x).softmax(-1)
        w, sel = probs.topk(self.top_k, dim=-1)
        w = w / w.sum(-1, keepdim=True)
        one_hot = F.one_hot(sel, self.num_experts).to(x.dtype)
        combine = (one_hot * w.unsqueeze(-1)).sum(dim=1)  # [tokens, experts]
        out = torch.zeros_like(x)
        for e in range(self.num_experts):
            out = out + combine[:, e: e + 1] * self.experts(x, e)
        return out.view(b, t, d)


class CausalSelfAttention(nn.Module):
    def __init__(self, dim, n_head):
        super().__init__()
        self.n_head = n_head
        self.wqkv = nn.Linear(dim, 3 * dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)

    def forward(self, x, cos, sin):
        b, t, d = x.shape
        q, k, v = (z.view(b, t, self.n_head, -1).transpose(1, 2) for z in self.wqkv(x).split(d, dim=-1))

        def rope(z):
            z1, z2 = z.chunk(2, dim=-1)
            return torch.cat((z1 * cos - z2 * sin, z2 * cos + z1 * sin), dim=-1)

        y = F.scaled_dot_product_attention(rope(q), rope(k), v, is_causal=True)
        return self.wo(y.transpose(1, 2).reshape(b, t, d))


class Layer(nn.Module):
    def __init__(self, dim, hidden, n_head, num_experts):
        super().__init__()
        self.attention_norm = RMSNorm(dim)
        self.attention = CausalSelfAttention(dim, n_head)
        self.ffn_norm = RMSNorm(dim)
        self.feed_forward = MoEFeedForward(dim, hidden, num_experts, top_k=2, n_in=4, n_out=5)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.ffn_norm(x))


class Transformer(nn.Module):
    def __init__(self, vocab=64, dim=32, hidden=64, n_head=4, n_layer=2, num_experts=6, max_len=64):
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList([Layer(dim, hidden, n_head, num_experts) for _ in range(n_layer)])
        self.norm = RMSNorm(dim)
        self.output = nn.Linear(dim, vocab, bias=False)
        hd = dim // n_head
        freqs = torch.outer(torch.arange(max_len).float(), 10000.0 ** (-torch.arange(0, hd, 2).float() / hd))
        self.register_buffer("cos", freqs.cos(), persistent=False)
        self.register_buffer("sin", freqs.sin(), persistent=False)
        self.apply_trained_like_weights()

    @torch.no_grad()
    def apply_trained_like_weights(self):
        for name, p in self.named_parameters():
            if name.endswith(("theta", "phi")):
                nn.init.normal_(p, std=0.5)
            elif name.endswith("router.weight"):
                nn.init.normal_(p, std=0.35)
            elif p.ndim == 1:
                nn.init.normal_(p, mean=1.0, std=0.25)
            else:
                nn.init.normal_(p, std=1.2 / math.sqrt(p.shape[-1]))

    def forward(self, tokens):
        t = tokens.shape[1]
        x = self.tok_embeddings(tokens)
        cos, sin = self.cos[:t], self.sin[:t]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.output(self.norm(x))


def make():
    torch.manual_seed(2024)
    model = Transformer().eval()
    tokens = torch.randint(0, 64, (2, 20))
    return model, (tokens,)
