"""Small ViT classifier in timm idiom whose MLPs are mixtures of square butterfly experts (equation 3).

shuffle    : none; stride-doubling pairs (distance 1, 2, 4, ... as in an FFT)
handedness : transpose (inverse) of the butterfly on the input side, plain on the output side
depth      : 6 = log2(64) layers on the input side, 5 on the output side
router     : softmax over all experts, then top-3, probabilities kept as they are; router bias
quantiser  : absmean per output row, round and clip, straight-through while training
biases     : one shared bias, added once per token after the mixture
form       : B(phi) . W_hat . B(theta)^T x with W_hat 64 x 64; no GELU, no W_down
dispatch   : ModuleList of experts, python loop with mask.any() skip, torch.where for (token, slot)
"""
import math
from functools import partial

import torch
import torch.nn as nn


class GivensButterfly(nn.Module):
    def __init__(self, dim, depth):
        super().__init__()
        assert dim & (dim - 1) == 0 and depth <= int(math.log2(dim))
        self.dim, self.depth = dim, depth
        self.angle = nn.Parameter(torch.zeros(depth, dim // 2))

    def _stage(self, x, level, sign):
        stride = 1 << level
        shape = x.shape
        x = x.reshape(*shape[:-1], self.dim // (2 * stride), 2, stride)
        a, b = x.unbind(dim=-2)
        ang = sign * self.angle[level].view(self.dim // (2 * stride), stride)
        c, s = torch.cos(ang), torch.sin(ang)
        return torch.stack([a * c - b * s, a * s + b * c], dim=-2).reshape(shape)

    def forward(self, x, inverse=False):
        if inverse:
            for level in reversed(range(self.depth)):
                x = self._stage(x, level, -1.0)
        else:
            for level in range(self.depth):
                x = self._stage(x, level, 1.0)
        return x


class TernarySubstrate(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, dim) * dim ** -0.5)

    def quantized(self):
        gamma = self.weight.abs().mean(dim=1, keepdim=True)
        q = (self.weight / (gamma + 1e-8)).round().clamp(-1, 1) * gamma
        if self.training:
            q = self.weight + (q - self.weight).detach()
        return q

    def forward(self, x):
        return x @ self.quantized().t()


class OrbitExpert(nn.Module):
    """Two angle tables; the substrate is handed in by the caller."""

    def __init__(self, dim, depth_in, depth_out):
        super().__init__()
        self.rot_in = GivensButterfly(dim, depth_in)
        self.rot_out = GivensButterfly(dim, depth_out)

    def forward(self, x, substrate):
        return self.rot_out(substrate(self.rot_in(x, inverse=True)))


class ButterflyMoeMlp(nn.Module):
    def __init__(self, dim, num_experts=6, top_k=3, depth_in=6, depth_out=5):
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(dim, num_experts)
        self.substrate = TernarySubstrate(dim)
        self.experts = nn.ModuleList([OrbitExpert(dim, depth_in, depth_out) for _ in range(num_experts)])
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        B, N, C = x.shape
        x = x.reshape(B * N, C)
        probs = self.router(x).softmax(dim=-1)
        weight, index = probs.topk(self.top_k, dim=-1)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            mask = index == e
            if not mask.any():
                continue
            tok, slot = torch.where(mask)
            out[tok] += weight[tok, slot, None] * expert(x[tok], self.substrate)
        return (out + self.bias).reshape(B, N, C)


class Attention(nn.Module):
    def __init__(self, dim, num_heads=4, qkv_bias=True):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        x = (attn.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj(x)


class LayerScale(nn.Module):
    def __init__(self, dim, init_values=0.5):
        super().__init__()
        self.gamma = nn.Parameter(init_values * torch.ones(dim))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, dim, num_heads, norm_layer):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(dim, num_heads)
        self.ls1 = LayerScale(dim)
        self.norm2 = norm_layer(dim)
        self.mlp = ButterflyMoeMlp(dim)
        self.ls2 = LayerScale(dim)

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        x = x + self.ls2(self.mlp(self.norm2(x)))
        return x


class PatchEmbed(nn.Module):
    def __init__(self, img_size=24, patch_size=6, in_chans=3, embed_dim=64):
        super().__init__()
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class ButterflyViT(nn.Module):
    def __init__(self, embed_dim=64, depth=2, num_heads=4, num_classes=10):
        super().__init__()
        norm_layer = partial(nn.LayerNorm, eps=1e-6)
        self.patch_embed = PatchEmbed(embed_dim=embed_dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim) * 0.5)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + self.patch_embed.num_patches, embed_dim) * 0.3)
        self.blocks = nn.Sequential(*[Block(embed_dim, num_heads, norm_layer) for _ in range(depth)])
        self.norm = norm_layer(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward_features(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.norm(self.blocks(x + self.pos_embed))

    def forward(self, x):
        x = self.forward_features(x)
        return self.head(x[:, 0])


def _randomize(m):
    if isinstance(m, nn.LayerNorm):
        nn.init.normal_(m.weight, 1.0, 0.2)
        nn.init.normal_(m.bias, 0.0, 0.2)
    elif isinstance(m, (nn.Linear, nn.Conv2d)):
        nn.init.normal_(m.bias, 0.0, 0.1)
    elif isinstance(m, GivensButterfly):
        nn.init.normal_(m.angle, 0.0, 0.5)
    elif isinstance(m, LayerScale):
        nn.init.uniform_(m.gamma, 0.3, 0.9)
    elif isinstance(m, ButterflyMoeMlp):
        nn.init.normal_(m.bias, 0.0, 0.1)
        nn.init.normal_(m.router.weight, 0.0, 0.2)


def make():
    torch.manual_seed(7)
    model = ButterflyViT()
    model.apply(_randomize)
    return model.eval(), (torch.randn(2, 3, 24, 24),)
