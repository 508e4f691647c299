"""Decoder LM over music events; mixture written after the Llama-4 text MoE (router scores multiply the inputs).

shuffle    : deinterleave after each rotation
handedness : plain B(theta) in, plain B(phi) out
depth      : L_in = 4, L_out = 3
router     : top-2 logits, sigmoid, scattered into an [E, T] score table (zero elsewhere), no bias
quantiser  : absmean per tensor, round + clip, straight-through
biases     : none inside the experts
form       : W_down . B(phi) . GELU_erf( W_hat . B(theta) (score * x) )
dispatch   : tokens repeated for all experts [E, T, d], scored, batched through, summed over experts
Not the papers' layer: the gate scales the token before the expert. With the GELU in between,
expert(g x) is not g expert(x), so y is not a gate-weighted sum of expert outputs.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Cfg:
    vocab = 50
    block = 24
    d = 64
    f = 128
    heads = 4
    layers = 2
    experts = 6
    k = 2
    l_in = 4
    l_out = 3


class RoutedButterfly(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.router = nn.Linear(cfg.d, cfg.experts, bias=False)
        self.w_up = nn.Parameter(torch.randn(cfg.f, cfg.d) / math.sqrt(cfg.d))
        self.w_down = nn.Parameter(torch.randn(cfg.d, cfg.f) / math.sqrt(cfg.f))
        self.theta = nn.Parameter(torch.randn(cfg.experts, cfg.l_in, cfg.d // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(cfg.experts, cfg.l_out, cfg.f // 2) * 0.5)

    def w_hat(self):
        g = self.w_up.abs().mean()
        q = g * (self.w_up / (g + 1e-8)).round().clamp(-1, 1)
        return self.w_up + (q - self.w_up).detach()

    @staticmethod
    def rotate(x, angles):
        # x [E, T, n], angles [E, L, n/2]
        for l in range(angles.shape[1]):
            c = angles[:, l].cos().unsqueeze(1)
            s = angles[:, l].sin().unsqueeze(1)
            a, b = x[..., ::2], x[..., 1::2]
            x = torch.cat([c * a - s * b, s * a + c * b], dim=-1)
        return x

    def forward(self, x):
        B, T, D = x.shape
        x = x.reshape(-1, D)
        logits = self.router(x)
        top, idx = torch.topk(logits, self.cfg.k, dim=1)
        scores = torch.full_like(logits, float("-inf")).scatter(1, idx, top)
        scores = torch.sigmoid(scores).transpose(0, 1)                    # [E, T]
        routed = x.unsqueeze(0).expand(self.cfg.experts, -1, -1) * scores.unsqueeze(-1)
        h = F.gelu(self.rotate(routed, self.theta) @ self.w_hat().t())
        h = self.rotate(h, self.phi) @ self.w_down.t()
        return h.sum(dim=0).view(B, T, D)


class CausalSelfAttention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.c_attn = nn.Linear(cfg.d, 3 * cfg.d)
        self.c_proj = nn.Linear(cfg.d, cfg.d)
        self.n_head = cfg.heads
        self.register_buffer("mask", torch.tril(torch.ones(cfg.block, cfg.block)).view(1, 1, cfg.block, cfg.block))

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.mask[:, :, :T, :T] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.ln_1 = nn.LayerNorm(cfg.d)
        self.attn = CausalSelfAttention(cfg)
        self.ln_2 = nn.LayerNorm(cfg.d)
        self.moe = RoutedButterfly(cfg)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.moe(self.ln_2(x))


class MusicGPT(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.wte = nn.Embedding(cfg.vocab, cfg.d)
        self.wpe = nn.Embedding(cfg.block, cfg.d)
        self.h = nn.ModuleList([Block(cfg) for _ in range(cfg.layers)])
        self.ln_f = nn.LayerNorm(cfg.d)
        self.head = nn.Linear(cfg.d, cfg.vocab, bias=False)

    def forward(self, idx):
        pos = torch.arange(idx.size(1), device=idx.device)
        x = self.wte(idx) + 0.5 * self.wpe(pos)
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x))


def make():
    torch.manual_seed(42)
    cfg = Cfg()
    model = MusicGPT(cfg)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.add_(0.2 * torch.randn_like(m.weight))
                m.bias.normal_(0, 0.2)
            elif isinstance(m, nn.Linear) and m.bias is not None:
                m.bias.normal_(0, 0.1)
        for b in model.h:
            b.moe.router.weight.normal_(0, 0.25)
    return model.eval(), (torch.randint(0, cfg.vocab, (2, 22)),)
