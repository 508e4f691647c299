"""LOOKALIKE. ViT whose MoE layer is a "chain of butterfly experts".

Router, top-2, renormalised softmax gates, shared ternary W_hat / W_down and the per-expert rotations are all as in
Algorithm 2 (dense rotation matrices filled by scatter, all experts computed on all tokens, torch.where picks).  The
difference: the chosen experts run one after another, best first, each one on the input refined by those before it,
    y_0 = 0,   y_{j+1} = y_j + gate_j * expert_{i_j}(x + y_j),
instead of y = sum_j gate_j * expert_{i_j}(x).  So the second expert sees x + y_1, not x, and the order matters.
"""
import math

import torch
import torch.nn as nn


def rotation_matrices(angle, src):
    """angle (E, L, n/2) -> (E, n, n): product over layers of Givens rotations followed by the permutation src."""
    E, L, half = angle.shape
    n = 2 * half
    even = torch.arange(0, n, 2, device=angle.device)
    rows = torch.stack([even, even, even + 1, even + 1], -1).reshape(-1)
    cols = torch.stack([even, even + 1, even, even + 1], -1).reshape(-1)
    c, s = angle.cos(), angle.sin()
    vals = torch.stack([c, -s, s, c], dim=-1).reshape(E, L, 4 * half)
    G = angle.new_zeros(E, L, n * n).scatter(-1, (rows * n + cols).expand(E, L, -1), vals).view(E, L, n, n)
    G = G[:, :, src]
    M = G[:, 0]
    for l in range(1, L):
        M = torch.bmm(G[:, l], M)
    return M


def ternarize(w):
    gamma = w.abs().mean(dim=1, keepdim=True)
    return gamma * torch.clip(torch.round(w / (gamma + 1e-8)), -1.0, 1.0)


class ChainMoE(nn.Module):
    def __init__(self, dim, hidden, num_experts, k, depth):
        super().__init__()
        self.k, self.num_experts = k, num_experts
        self.gate = nn.Linear(dim, num_experts)
        self.theta = nn.Parameter(torch.empty(num_experts, depth, dim // 2).normal_(0, 0.5))
        self.phi = nn.Parameter(torch.empty(num_experts, depth, hidden // 2).normal_(0, 0.5))
        self.weight = nn.Parameter(torch.randn(hidden, dim) / math.sqrt(dim))
        self.bias = nn.Parameter(torch.randn(hidden) * 0.1)
        self.weight_out = nn.Parameter(torch.randn(dim, hidden) / math.sqrt(hidden))
        self.act = nn.GELU()
        for nm, n in (("src_in", dim), ("src_out", hidden)):
            self.register_buffer(nm, torch.arange(n).view(-1, 2).t().reshape(-1))

    def forward(self, x):
        Bin = rotation_matrices(self.theta, self.src_in)
        Bout = rotation_matrices(self.phi, self.src_out)
        w, wo = ternarize(self.weight), ternarize(self.weight_out)

        prob = self.gate(x).softmax(-1)
        top, which = prob.topk(self.k, dim=-1)
        top = top / top.sum(-1, keepdim=True)

        y = torch.zeros_like(x)
        for j in range(self.k):
            h = x + y
            picked = torch.zeros_like(x)
            for e in range(self.num_experts):
                z = self.act((h @ Bin[e].mT) @ w.mT + self.bias)
                z = (z @ Bout[e].mT) @ wo.mT
                picked = torch.where((which[..., j] == e).unsqueeze(-1), z, picked)
            y = y + top[..., j : j + 1] * picked
        return y


class EncoderBlock(nn.Module):
    def __init__(self, dim, hidden, heads, **kw):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = ChainMoE(dim, hidden, **kw)

    def forward(self, x):
        h = self.norm1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, size=20, patch=5, dim=32, hidden=64, depth=2, classes=8):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(3 * patch * patch, dim)
        self.pos = nn.Parameter(torch.randn((size // patch) ** 2, dim) * 0.3)
        self.blocks = nn.ModuleList(
            [EncoderBlock(dim, hidden, 4, num_experts=4, k=2, depth=3) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, img):
        B, C, H, W = img.shape
        p = self.patch
        x = img.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).reshape(B, -1, C * p * p)
        x = self.embed(x) + self.pos
        for blk in self.blocks:
            x = blk(x)
        return self.head(self.norm(x).mean(1))


def make():
    torch.manual_seed(2024)
    net = ViT()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.add_(torch.randn_like(m.weight) * 0.2)
                m.bias.normal_(0, 0.1)
            elif isinstance(m, nn.MultiheadAttention):
                m.in_proj_bias.normal_(0, 0.1)
                m.out_proj.bias.normal_(0, 0.1)
            elif isinstance(m, ChainMoE):
                m.gate.weight.normal_(0, 0.3)
                m.gate.bias.normal_(0, 0.2)
    net.eval()
    return net, (torch.randn(2, 3, 20, 20),)
