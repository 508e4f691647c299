"""Vision transformer in the timm manner whose MLPs are mixtures of butterfly-rotated experts.

form       W_down . B(phi_i) . GELU(W_hat . B(theta_i) x), Algorithm 2 of ButterflyViT
rotation   (2j, 2j+1) pairs, [c -s; s c], strided slices written back into an empty tensor; forward on both sides
shuffle    deinterleave (evens first, then odds), after the rotation, as in Algorithm 1
L          2 and 2
width      48 -> 64 and 96 -> 128, zero-padded once before the layers and stripped once after them
router     linear with bias, top-2, gates are the raw logits as printed
quantiser  nn.utils.parametrize on fc1: round/clip, gamma of the whole tensor, detach trick
biases     none in fc1; fc2 has one, added once per token (outside of the gated sum)
dispatch   masked loop over experts
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils import parametrize


class TernaryWeight(nn.Module):
    """BitNet-b1.58 style weight parametrization."""

    def __init__(self, eps: float = 1e-8):
        super().__init__()
        self.eps = eps

    def forward(self, W):
        scale = W.detach().abs().mean()
        W_q = (W / (scale + self.eps)).round().clamp(-1, 1) * scale
        return (W_q - W).detach() + W


class PatchEmbed(nn.Module):
    def __init__(self, img_size=32, patch_size=8, in_chans=3, embed_dim=48):
        super().__init__()
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class LayerScale(nn.Module):
    def __init__(self, dim, init_values=0.5):
        super().__init__()
        self.gamma = nn.Parameter(init_values * torch.ones(dim))

    def forward(self, x):
        return x * self.gamma


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
        attn = attn.softmax(dim=-1)
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj(x)


def next_pow2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def butterfly(x, angles):
    """x (..., n), angles (L, P/2) with P >= n."""
    n, P = x.shape[-1], 2 * angles.shape[-1]
    if P != n:
        x = F.pad(x, (0, P - n))
    for theta in angles:
        c, s = theta.cos(), theta.sin()
        y = torch.empty_like(x)
        y[..., 0::2] = c * x[..., 0::2] - s * x[..., 1::2]
        y[..., 1::2] = s * x[..., 0::2] + c * x[..., 1::2]
        x = torch.cat([y[..., 0::2], y[..., 1::2]], dim=-1)
    return x[..., :n]


class ButterflyMoeMlp(nn.Module):
    def __init__(self, in_features, hidden_features, num_experts=4, top_k=2, depth=2, act_layer=nn.GELU):
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.router = nn.Linear(in_features, num_experts)
        self.fc1 = nn.Linear(in_features, hidden_features, bias=False)
        parametrize.register_parametrization(self.fc1, "weight", TernaryWeight())
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_features, in_features, bias=True)
        self.theta = nn.Parameter(0.5 * torch.randn(num_experts, depth, next_pow2(in_features) // 2))
        self.phi = nn.Parameter(0.5 * torch.randn(num_experts, depth, next_pow2(hidden_features) // 2))

    def forward(self, x):
        shape = x.shape
        x = x.flatten(0, -2)
        gate, index = self.router(x).topk(self.top_k, dim=-1)
        hidden = x.new_zeros(x.shape[0], self.fc2.in_features)
        with parametrize.cached():
            for e in range(self.num_experts):
                hit = index == e
                mask = hit.any(dim=-1)
                if not mask.any():
                    continue
                h = butterfly(x[mask], self.theta[e])
                h = self.act(self.fc1(h))
                h = butterfly(h, self.phi[e])
                w = torch.where(hit, gate, torch.zeros_like(gate)).sum(dim=-1)
                hidden[mask] += w[mask].unsqueeze(-1) * h
        return self.fc2(hidden).reshape(shape)


class Block(nn.Module):
    def __init__(self, dim, num_heads, mlp_ratio=2.0, norm_layer=nn.LayerNorm, **moe_kwargs):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(dim, num_heads=num_heads)
        self.ls1 = LayerScale(dim)
        self.norm2 = norm_layer(dim)
        self.mlp = ButterflyMoeMlp(dim, int(dim * mlp_ratio), **moe_kwargs)
        self.ls2 = LayerScale(dim)

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        x = x + self.ls2(self.mlp(self.norm2(x)))
        return x


class ButterflyVisionTransformer(nn.Module):
    def __init__(self, img_size=32, patch_size=8, num_classes=10, embed_dim=48, depth=2, num_heads=4, **kw):
        super().__init__()
        self.patch_embed = PatchEmbed(img_size, patch_size, 3, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.randn(1, self.patch_embed.num_patches + 1, embed_dim) * 0.2)
        self.blocks = nn.Sequential(*[Block(embed_dim, num_heads, **kw) for _ in range(depth)])
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward_features(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.norm(self.blocks(x))

    def forward(self, x):
        return self.head(self.forward_features(x)[:, 0])


def make():
    torch.manual_seed(2603)
    model = ButterflyVisionTransformer()
    with torch.no_grad():
        model.cls_token.normal_(0, 0.3)
        for m in model.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.uniform_(0.6, 1.4)
            if isinstance(m, LayerScale):
                m.gamma.uniform_(0.3, 0.9)
            if isinstance(m, ButterflyMoeMlp):
                m.router.weight.normal_(0, 0.3)
                m.fc1.parametrizations.weight.original.normal_(0, 0.1)
            if getattr(m, "bias", None) is not None:
                m.bias.normal_(0, 0.15)
    return model.eval(), (torch.randn(2, 3, 32, 32),)
