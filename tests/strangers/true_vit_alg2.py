"""ButterflyViT classifier, typed in from Algorithm 2 more or less line by line.

Choices: ButterflyTransform is an nn.Module called as bt(x, angles); Givens on x[..., 0::2] / x[..., 1::2], then the
perfect shuffle (deinterleave, evens first) after each rotation, Algorithm 1 order. Zero-pad 48->64 and 96->128, strip after.
Gates are the raw top-k logits (as printed). Per-tensor gamma, STE, float W_down with a bias that sits inside the
expert (so it is weighted by the gate), bias after W_hat before the erf GELU. Experts: python loop with boolean masks,
y[mask] += ... (index_put). Class token, learned pos-emb, nn.MultiheadAttention, pre-norm.
"""
import math
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F


class ButterflyTransform(nn.Module):
    """Algorithm 1. Has no parameters of its own, angles come from the expert."""

    def __init__(self, dim, n_layers=None):
        super().__init__()
        self.dim = dim
        self.padded = 2 ** math.ceil(math.log2(dim))
        self.n_layers = n_layers if n_layers is not None else int(math.log2(self.padded))

    def forward(self, x, angles):
        assert angles.shape == (self.n_layers, self.padded // 2)
        if self.padded != self.dim:
            x = F.pad(x, (0, self.padded - self.dim))
        for l in range(self.n_layers):
            c = torch.cos(angles[l])
            s = torch.sin(angles[l])
            x_even = x[..., 0::2]
            x_odd = x[..., 1::2]
            out = torch.empty_like(x)
            out[..., 0::2] = c * x_even - s * x_odd
            out[..., 1::2] = s * x_even + c * x_odd
            # perfect shuffle
            x = torch.cat([out[..., 0::2], out[..., 1::2]], dim=-1)
        return x[..., :self.dim]


class TernaryLinear(nn.Module):
    def __init__(self, in_features, out_features):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / math.sqrt(in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def quantize(self):
        w = self.weight
        gamma = w.abs().mean()
        w_hat = gamma * torch.clamp(torch.round(w / (gamma + 1e-8)), -1, 1)
        return w + (w_hat - w).detach()  # straight-through

    def forward(self, x):
        return F.linear(x, self.quantize(), self.bias)


class ExpertAngles(nn.Module):
    def __init__(self, bt_in, bt_out):
        super().__init__()
        self.theta = nn.Parameter(torch.randn(bt_in.n_layers, bt_in.padded // 2) * 0.01)
        self.phi = nn.Parameter(torch.randn(bt_out.n_layers, bt_out.padded // 2) * 0.01)


class ButterflyMoE(nn.Module):
    def __init__(self, d_model, d_ff, num_experts=4, top_k=2, layers_in=None, layers_out=None):
        super().__init__()
        self.top_k = top_k
        self.gate = nn.Linear(d_model, num_experts, bias=False)
        self.bt_in = ButterflyTransform(d_model, layers_in)
        self.bt_out = ButterflyTransform(d_ff, layers_out)
        self.substrate = TernaryLinear(d_model, d_ff)
        self.w_down = nn.Linear(d_ff, d_model)
        self.experts = nn.ModuleList([ExpertAngles(self.bt_in, self.bt_out) for _ in range(num_experts)])

    def forward(self, x):
        B, N, D = x.shape
        x_flat = x.reshape(B * N, D)
        logits = self.gate(x_flat)
        topk_vals, topk_idx = torch.topk(logits, self.top_k, dim=-1)
        y = torch.zeros_like(x_flat)
        for k in range(self.top_k):
            for i, expert in enumerate(self.experts):
                mask = topk_idx[:, k] == i
                if not mask.any():
                    continue
                x_rot = self.bt_in(x_flat[mask], expert.theta)
                h = F.gelu(self.substrate(x_rot))
                h_rot = self.bt_out(h, expert.phi)
                y[mask] += topk_vals[mask, k].unsqueeze(-1) * self.w_down(h_rot)
        return y.reshape(B, N, D)


class Block(nn.Module):
    def __init__(self, dim, heads, mlp):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.moe = mlp()

    def forward(self, x):
        h = self.norm1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        x = x + self.moe(self.norm2(x))
        return x


class ButterflyViT(nn.Module):
    def __init__(self, img_size=16, patch=4, in_chans=3, dim=48, d_ff=96, depth=2, heads=4, n_experts=4, classes=10):
        super().__init__()
        n = (img_size // patch) ** 2
        self.patch_embed = nn.Conv2d(in_chans, dim, kernel_size=patch, stride=patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, n + 1, dim) * 0.02)
        mlp = partial(ButterflyMoE, dim, d_ff, num_experts=n_experts, top_k=2, layers_in=None, layers_out=4)
        self.blocks = nn.ModuleList([Block(dim, heads, mlp) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)

    def forward(self, img):
        x = self.patch_embed(img).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for blk in self.blocks:
            x = blk(x)
        return self.head(self.norm(x)[:, 0])


def _pretend_trained(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("theta") or name.endswith("phi"):
                p.normal_(0, 0.5)
            elif "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.25 * torch.randn_like(p))
            elif name.endswith("bias"):
                p.normal_(0, 0.15)
            elif name.endswith("gate.weight"):
                p.normal_(0, 0.25)
            elif name in ("cls_token", "pos_embed"):
                p.normal_(0, 0.4)


def make():
    torch.manual_seed(42)
    model = ButterflyViT()
    _pretend_trained(model)
    model.eval()
    return model, (torch.randn(2, 3, 16, 16),)
