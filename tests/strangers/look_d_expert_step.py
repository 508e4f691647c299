"""
Text classifier (bag of attention blocks) with butterfly experts and learnt quantiser steps.

shuffle    : deinterleave after the rotation; forward on both sides; L = 2 in, 2 out
router     : top-2 then softmax, linear with bias
quantiser  : ternary codes round_clip(W / gamma), gamma = mean|W|
biases     : shared down bias added once
form       : W_down . B(phi_i) . GELU( s_i * codes . B(theta_i) x )
dispatch   : one_hot dispatch einsum over all experts
NOT a Butterfly layer: the step s_i that multiplies the ternary codes is a parameter of each expert (LSQ style, initialised
from gamma), in front of the GELU, so experts own more than their angles and do not share one W_hat.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


def givens(x, angles):
    # x [E, N, P], angles [E, L, P/2]
    for l in range(angles.size(1)):
        c = angles[:, l].cos().unsqueeze(1)
        s = angles[:, l].sin().unsqueeze(1)
        a, b = x[..., 0::2], x[..., 1::2]
        x = torch.cat((c * a - s * b, s * a + c * b), dim=-1)
    return x


class TernaryCodes(nn.Module):
    def __init__(self, rows, cols):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, cols) / cols ** 0.5)

    def gamma(self):
        return self.weight.abs().mean()

    def forward(self):
        w = self.weight / (self.gamma() + 1e-8)
        q = w.round().clamp(-1, 1)
        return w + (q - w).detach() if self.training else q


class ButterflyFFN(nn.Module):
    def __init__(self, d=32, ff=64, experts=6, k=2, layers=2):
        super().__init__()
        self.k, self.experts = k, experts
        self.router = nn.Linear(d, experts)
        self.codes = TernaryCodes(ff, d)
        self.step = nn.Parameter(self.codes.gamma().detach() * torch.ones(experts))
        self.down = nn.Linear(ff, d)
        self.theta = nn.Parameter(torch.randn(experts, layers, d // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(experts, layers, ff // 2) * 0.5)

    def forward(self, x):
        b, n, d = x.shape
        flat = x.reshape(-1, d)
        val, idx = self.router(flat).topk(self.k, dim=-1)
        onehot = F.one_hot(idx, self.experts).to(x.dtype)                  # [T, k, E]
        combine = torch.einsum("tk,tke->te", val.softmax(-1), onehot)
        dispatch = onehot.sum(1)                                           # [T, E]
        xe = torch.einsum("te,td->etd", dispatch, flat)
        h = givens(xe, self.theta)
        h = torch.einsum("fd,etd->etf", self.codes(), h) * self.step[:, None, None]
        h = givens(F.gelu(h), self.phi)
        y = torch.einsum("te,etf->tf", combine, h)
        return self.down(y).view(b, n, d)


class Layer(nn.Module):
    def __init__(self, d, ff, experts):
        super().__init__()
        self.attn_norm, self.ffn_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = nn.MultiheadAttention(d, 4, batch_first=True)
        self.ffn = ButterflyFFN(d, ff, experts)

    def forward(self, x):
        # post-norm, BERT style
        x = self.attn_norm(x + self.attn(x, x, x, need_weights=False)[0])
        return self.ffn_norm(x + self.ffn(x))


class SentimentNet(nn.Module):
    def __init__(self, vocab=120, d=32, ff=64, experts=6, depth=2, max_len=32, classes=3):
        super().__init__()
        self.tok = nn.Embedding(vocab, d)
        self.pos = nn.Embedding(max_len, d)
        self.layers = nn.ModuleList([Layer(d, ff, experts) for _ in range(depth)])
        self.pool = nn.Linear(d, 1)
        self.out = nn.Linear(d, classes)

    def forward(self, ids):
        x = self.tok(ids) + self.pos(torch.arange(ids.size(1), device=ids.device))
        for layer in self.layers:
            x = layer(x)
        w = self.pool(x).softmax(dim=1)
        return self.out((w * x).sum(1))


def make():
    torch.manual_seed(711)
    net = SentimentNet()
    with torch.no_grad():
        for n, p in net.named_parameters():
            if n.endswith("bias"):
                p.normal_(0, 0.1)
            elif n.endswith("norm.weight"):
                p.uniform_(0.7, 1.3)
            elif n.endswith("step"):
                p.mul_(torch.empty_like(p).uniform_(0.7, 1.4))
            elif n.endswith("router.weight"):
                p.normal_(0, 0.3)
    return net.eval(), (torch.randint(0, 120, (3, 20)),)
