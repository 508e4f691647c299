"""ButterflyViT classifier, Algorithm 2 typed in as printed.

Style: one nn.Module per butterfly (one per expert and side), strided slices for the pairs, deinterleave shuffle
AFTER the rotation (Algorithm 1), zero padding 48 -> 64 and 96 -> 128, stripped at the end. Per-expert Python loop with
boolean masks, written back with y[mask] = ... . Gates are the raw top-k logits. One per-tensor gamma for W_hat,
W_down is a plain float nn.Linear, whose bias is hence weighted by the gate. erf GELU before B(phi). timm-like ViT
with a class token.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def ternary_quantize(w, eps=1e-8):
    gamma = w.abs().mean()
    w_q = torch.clamp(torch.round(w / (gamma + eps)), -1, 1) * gamma
    # straight-through estimator
    return w + (w_q - w).detach()


class ButterflyTransform(nn.Module):
    """Algorithm 1: L x (Givens rotations on (2j, 2j+1), perfect shuffle)."""

    def __init__(self, dim, num_layers):
        super().__init__()
        self.dim = dim
        self.padded = 2 ** math.ceil(math.log2(dim))
        self.num_layers = num_layers
        self.angles = nn.Parameter(torch.randn(num_layers, self.padded // 2) * 0.01)

    def forward(self, x):
        if self.padded != self.dim:
            x = F.pad(x, (0, self.padded - self.dim))
        for l in range(self.num_layers):
            cos = torch.cos(self.angles[l])
            sin = torch.sin(self.angles[l])
            x_even = x[..., 0::2]
            x_odd = x[..., 1::2]
            out = torch.empty_like(x)
            out[..., 0::2] = cos * x_even - sin * x_odd
            out[..., 1::2] = sin * x_even + cos * x_odd
            # perfect shuffle
            x = torch.cat([out[..., 0::2], out[..., 1::2]], dim=-1)
        return x[..., : self.dim]


class ButterflyMoE(nn.Module):
    def __init__(self, d_model, d_ff, num_experts=4, top_k=2, layers_in=4, layers_out=3):
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.gate = nn.Linear(d_model, num_experts, bias=False)
        self.W = nn.Parameter(torch.randn(d_ff, d_model) / math.sqrt(d_model))
        self.W_down = nn.Linear(d_ff, d_model)
        self.theta = nn.ModuleList([ButterflyTransform(d_model, layers_in) for _ in range(num_experts)])
        self.phi = nn.ModuleList([ButterflyTransform(d_ff, layers_out) for _ in range(num_experts)])

    def forward(self, x):
        B, N, D = x.shape
        x = x.reshape(B * N, D)
        W_hat = ternary_quantize(self.W)

        logits = self.gate(x)
        topk_vals, topk_idx = torch.topk(logits, self.top_k, dim=-1)

        y = torch.zeros_like(x)
        for i in range(self.num_experts):
            for k in range(self.top_k):
                mask = topk_idx[:, k] == i
                if not mask.any():
                    continue
                x_rot = self.theta[i](x[mask])
                h = F.gelu(F.linear(x_rot, W_hat))
                h_rot = self.phi[i](h)
                y[mask] += topk_vals[mask, k].unsqueeze(-1) * self.W_down(h_rot)
        return y.reshape(B, N, D)


class Attention(nn.Module):
    def __init__(self, dim, num_heads=4):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q @ k.transpose(-2, -1)) * self.scale
        attn = attn.softmax(dim=-1)
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj(x)


class Block(nn.Module):
    def __init__(self, dim, d_ff, num_experts, top_k):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.moe = ButterflyMoE(dim, d_ff, num_experts, top_k)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        x = x + self.moe(self.norm2(x))
        return x


class ButterflyViT(nn.Module):
    def __init__(self, img_size=32, patch_size=8, num_classes=10, dim=48, depth=2, d_ff=96, num_experts=4, top_k=2):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)
        num_patches = (img_size // patch_size) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches + 1, dim))
        self.blocks = nn.ModuleList([Block(dim, d_ff, num_experts, top_k) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, img):
        x = self.patch_embed(img).flatten(2).transpose(1, 2)
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        x = torch.cat([cls, x], dim=1) + self.pos_embed
        for blk in self.blocks:
            x = blk(x)
        return self.head(self.norm(x)[:, 0])


@torch.no_grad()
def _pretend_trained(model):
    for m in model.modules():
        if isinstance(m, ButterflyTransform):
            m.angles.normal_(0, 0.5)
        elif isinstance(m, nn.LayerNorm):
            m.weight.normal_(1.0, 0.2)
            m.bias.normal_(0, 0.2)
        elif isinstance(m, (nn.Linear, nn.Conv2d)) and m.bias is not None:
            m.bias.normal_(0, 0.2)
        if isinstance(m, ButterflyMoE):
            m.gate.weight.normal_(0, 0.3)
    model.cls_token.normal_(0, 0.5)
    model.pos_embed.normal_(0, 0.5)


def make():
    torch.manual_seed(0)
    model = ButterflyViT()
    _pretend_trained(model)
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    return model, (images,)


if __name__ == "__main__":
    model, inputs = make()
    print(model(*inputs))
