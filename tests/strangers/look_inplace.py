"""LOOKALIKE. ViT with global average pooling and a butterfly MoE MLP, PhD-student style, angles per expert.

Differs in one thing: the pair update is done in place and sequentially (Gauss-Seidel / lifting-like). x[..., 0::2] is a view, so the odd
channel is computed from the ALREADY UPDATED even channel:  a' = c a - s b ;  b' = s a' + c b. That map is not a rotation
(determinant c^2, not orthogonal) for any angle, although the lines read like a Givens rotation. All else follows the paper:
shared ternary W_hat (per-tensor gamma), erf GELU, shared float W_down, deinterleave shuffle, top-2 then softmax gates,
index_add dispatch.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Butterfly(nn.Module):
    def __init__(self, dim, depth):
        super().__init__()
        self.dim = dim
        self.angles = nn.Parameter(0.01 * torch.randn(depth, dim // 2))
        self.register_buffer("perm", torch.cat([torch.arange(0, dim, 2), torch.arange(1, dim, 2)]), persistent=False)

    def forward(self, x):
        for angle in self.angles:
            x = x.clone()
            a = x[..., 0::2]
            b = x[..., 1::2]
            c, s = angle.cos(), angle.sin()
            x[..., 0::2] = c * a - s * b
            x[..., 1::2] = s * a + c * b
            x = x[..., self.perm]
        return x


class Expert(nn.Module):
    def __init__(self, d, f, l_in, l_out):
        super().__init__()
        self.b_in = Butterfly(d, l_in)
        self.b_out = Butterfly(f, l_out)

    def forward(self, x, w_hat, bias, w_down):
        return w_down(self.b_out(F.gelu(F.linear(self.b_in(x), w_hat, bias))))


class MoE(nn.Module):
    def __init__(self, d, f, n_experts, k, l_in, l_out):
        super().__init__()
        self.k = k
        self.w_g = nn.Linear(d, n_experts)
        self.w = nn.Parameter(torch.randn(f, d) / math.sqrt(d))
        self.b = nn.Parameter(torch.zeros(f))
        self.w_down = nn.Linear(f, d, bias=False)
        self.experts = nn.ModuleList(Expert(d, f, l_in, l_out) for _ in range(n_experts))

    def ternary(self):
        gamma = self.w.abs().mean()
        w_hat = torch.round(self.w / (gamma + 1e-8)).clamp(-1, 1) * gamma
        return self.w + (w_hat - self.w).detach()

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        w_hat = self.ternary()
        top, idx = self.w_g(x).topk(self.k, dim=-1)
        gates = top.softmax(dim=-1)
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            tok, slot = (idx == i).nonzero(as_tuple=True)
            out = expert(x[tok], w_hat, self.b, self.w_down)
            y = y.index_add(0, tok, gates[tok, slot][:, None] * out)
        return y.reshape(shape)


class Attn(nn.Module):
    def __init__(self, d, h):
        super().__init__()
        self.h = h
        self.qkv = nn.Linear(d, 3 * d)
        self.proj = nn.Linear(d, d)

    def forward(self, x):
        B, N, D = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.h, D // self.h).permute(2, 0, 3, 1, 4)
        att = (q @ k.transpose(-2, -1) / math.sqrt(D // self.h)).softmax(-1)
        return self.proj((att @ v).transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
    def __init__(self, d, f):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(d), Attn(d, 4)
        self.norm2, self.moe = nn.LayerNorm(d), MoE(d, f, n_experts=5, k=2, l_in=5, l_out=3)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.moe(self.norm2(x))


class Net(nn.Module):
    def __init__(self, d=32, f=128, depth=2, classes=8):
        super().__init__()
        self.patch = nn.Linear(3 * 4 * 4, d)
        self.pos = nn.Parameter(0.3 * torch.randn(16, d))
        self.blocks = nn.Sequential(*[Block(d, f) for _ in range(depth)])
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, classes)

    def forward(self, img):
        x = F.unfold(img, kernel_size=4, stride=4).transpose(1, 2)
        x = self.blocks(self.patch(x) + self.pos)
        return self.head(self.norm(x).mean(dim=1))


def make():
    torch.manual_seed(3)
    net = Net()
    with torch.no_grad():
        for n, p in net.named_parameters():
            if "angles" in n:
                p.copy_(torch.randn_like(p) * 0.5)
            elif "norm" in n and n.endswith("weight"):
                p.add_(0.3 * torch.randn_like(p))
            elif n.endswith((".bias", ".b")):
                p.copy_(torch.randn_like(p) * 0.2)
            elif n.endswith("w_g.weight"):
                p.copy_(torch.randn_like(p) * 0.3)
    return net.eval(), (torch.randn(2, 3, 16, 16),)
