"""LOOKALIKE. Small causal LM with butterfly experts; the router score is applied to the expert's INPUT.

What differs: y = sum_i expert_i(s_i * x), not sum_i s_i * expert_i(x). The rotation and the ternary matmul are linear, but
the GELU sits behind them, so the score cannot be pulled out. (Some recent open LLMs route so: scores of the top-k
are sigmoid-ed, all others are -inf -> 0, the scaled tokens go through the experts and the results are just summed.)
Everything else is the paper's: shared ternary W_hat and W_down, expert-owned angles, Givens + deinterleave shuffle after.
Style: tokens repeated for all experts as (E, T, d), stacked angles with broadcasting, learned positions, untied head.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def absmean_ternary(weight):
    gamma = weight.abs().mean()
    q = (weight / (gamma + 1e-8)).round().clamp(-1, 1)
    return weight + (q * gamma - weight).detach()


class StackedButterfly(nn.Module):
    """One butterfly per expert, evaluated together: (E, T, n) -> (E, T, n)."""

    def __init__(self, num_experts, n, depth):
        super().__init__()
        self.angle = nn.Parameter(torch.randn(num_experts, depth, n // 2) * 0.01)

    def forward(self, x):
        cos, sin = self.angle.cos(), self.angle.sin()
        for l in range(self.angle.shape[1]):
            c, s = cos[:, None, l], sin[:, None, l]
            a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
            # the cat of the two rotated halves is already the perfect shuffle of the pairs
            x = torch.cat((c * a - s * b, s * a + c * b), dim=-1)
        return x


class ButterflyExperts(nn.Module):
    def __init__(self, num_experts, d, ff, depth_in, depth_out):
        super().__init__()
        self.rot_in = StackedButterfly(num_experts, d, depth_in)
        self.rot_out = StackedButterfly(num_experts, ff, depth_out)
        self.up = nn.Parameter(torch.randn(ff, d) * d ** -0.5)
        self.down = nn.Parameter(torch.randn(d, ff) * ff ** -0.5)

    def forward(self, x):
        h = F.gelu(self.rot_in(x) @ absmean_ternary(self.up).t())
        return self.rot_out(h) @ absmean_ternary(self.down).t()


class ButterflyMoE(nn.Module):
    def __init__(self, d, ff, num_experts, top_k):
        super().__init__()
        self.d, self.num_experts, self.top_k = d, num_experts, top_k
        self.router = nn.Linear(d, num_experts, bias=False)
        self.experts = ButterflyExperts(num_experts, d, ff, depth_in=5, depth_out=4)

    def forward(self, hidden):
        x = hidden.reshape(-1, self.d)
        logits = self.router(x)
        top_val, top_idx = torch.topk(logits, self.top_k, dim=1)
        scores = torch.full_like(logits, float("-inf")).scatter_(1, top_idx, top_val)
        scores = torch.sigmoid(scores).transpose(0, 1)  # (E, T), zero where not selected
        routed = x.repeat(self.num_experts, 1).view(self.num_experts, -1, self.d)
        routed = routed * scores.unsqueeze(-1)
        out = self.experts(routed).sum(dim=0)
        return out.view_as(hidden)


class SelfAttention(nn.Module):
    def __init__(self, d, n_head):
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(d, 3 * d)
        self.c_proj = nn.Linear(d, d)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v))
        att = (q @ k.transpose(-2, -1)) / math.sqrt(k.size(-1))
        causal = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
        att = att.masked_fill(~causal, float("-inf")).softmax(dim=-1)
        return self.c_proj((att @ v).transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, d, ff, n_head, num_experts, top_k):
        super().__init__()
        self.ln_1 = nn.LayerNorm(d)
        self.attn = SelfAttention(d, n_head)
        self.ln_2 = nn.LayerNorm(d)
        self.moe = ButterflyMoE(d, ff, num_experts, top_k)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.moe(self.ln_2(x))


class TinyLM(nn.Module):
    def __init__(self, vocab=80, block_size=64, d=32, ff=64, n_layer=2, n_head=4, num_experts=6, top_k=2):
        super().__init__()
        self.wte = nn.Embedding(vocab, d)
        self.wpe = nn.Embedding(block_size, d)
        self.h = nn.ModuleList([Block(d, ff, n_head, num_experts, top_k) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(d)
        self.lm_head = nn.Linear(d, vocab, bias=False)

    def forward(self, idx):
        x = self.wte(idx) + self.wpe(torch.arange(idx.size(1), device=idx.device))
        for blk in self.h:
            x = blk(x)
        return self.lm_head(self.ln_f(x))


def make():
    torch.manual_seed(42)
    model = TinyLM()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, StackedButterfly):
                m.angle.normal_(std=0.5)
            elif isinstance(m, nn.LayerNorm):
                m.weight.uniform_(0.5, 1.6)
                m.bias.normal_(std=0.2)
            elif isinstance(m, nn.Linear) and m.bias is not None:
                m.bias.normal_(std=0.1)
            if isinstance(m, ButterflyMoE):
                m.router.weight.normal_(std=0.3)
    return model.eval(), (torch.randint(0, 80, (2, 30)),)
