""" ButterflyViT in the style of timm `vision_transformer.py`

Pre-norm ViT (conv patch embed, cls token, drop path, layer scale on both branches) where `mlp` is a butterfly MoE.
  shuffle     deinterleave (evens then odds) AFTER the rotation (Algorithm 1), as a (pairs, 2) -> (2, pairs) transpose
  handedness  plain B(theta) in and plain B(phi) out (Algorithm 2)
  depth       L_in = 2, L_out = 4; dim 64, hidden 128, no padding
  router      affine, raw top-4 logits as gates (Algorithm 2 as printed), E = 12
  quantiser   threshold ternary, |w| > 0.7 mean|w| -> sign(w) * mean|w|, per tensor, straight-through; fc2 float
  form        fc2( B(phi) GELU_erf( W_hat B(theta) x + b1 ) ) + b2
  biases      b1 in the shared fc1 before GELU; b2 added once per token because fc2 runs after the gated sum
  dispatch    loop over the k slots, per-token gather theta[idx] / phi[idx], einsum with 2x2 rotation matrices
"""
from functools import partial
from typing import Callable, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F


def drop_path(x, drop_prob: float = 0., training: bool = False, scale_by_keep: bool = True):
    if drop_prob == 0. or not training:
        return x
    keep_prob = 1 - drop_prob
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    random_tensor = x.new_empty(shape).bernoulli_(keep_prob)
    if keep_prob > 0.0 and scale_by_keep:
        random_tensor.div_(keep_prob)
    return x * random_tensor


class DropPath(nn.Module):
    def __init__(self, drop_prob: float = 0., scale_by_keep: bool = True):
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep

    def forward(self, x):
        return drop_path(x, self.drop_prob, self.training, self.scale_by_keep)


class LayerScale(nn.Module):
    def __init__(self, dim: int, init_values: float = 1e-5, inplace: bool = False):
        super().__init__()
        self.inplace = inplace
        self.gamma = nn.Parameter(init_values * torch.ones(dim))

    def forward(self, x):
        return x.mul_(self.gamma) if self.inplace else x * self.gamma


class PatchEmbed(nn.Module):
    def __init__(self, img_size: int = 24, patch_size: int = 4, in_chans: int = 3, embed_dim: int = 64):
        super().__init__()
        self.num_patches = (img_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x):
        x = self.proj(x)
        return x.flatten(2).transpose(1, 2)  # NCHW -> NLC


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int = 4, qkv_bias: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        x = attn.softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class TernaryLinear(nn.Linear):
    """ Linear w/ {-1, 0, +1} * mean|w| weights, latent float weights kept for training """
    threshold: float = 0.7

    def ternary_weight(self) -> torch.Tensor:
        mag = self.weight.abs()
        gamma = mag.mean()
        w_hat = torch.where(mag > self.threshold * gamma, self.weight.sign() * gamma, torch.zeros_like(self.weight))
        return self.weight + (w_hat - self.weight).detach()

    def forward(self, x):
        return F.linear(x, self.ternary_weight(), self.bias)


def apply_butterfly(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """ x: (N, C), angles: (N, L, C // 2), every token w/ its own angles """
    N, C = x.shape
    cos, sin = angles.cos(), angles.sin()
    rot = torch.stack([torch.stack([cos, -sin], dim=-1), torch.stack([sin, cos], dim=-1)], dim=-2)  # N, L, C//2, 2, 2
    for r in rot.unbind(dim=1):
        x = torch.einsum('npij,npj->npi', r, x.view(N, C // 2, 2))
        x = x.transpose(1, 2).reshape(N, C)
    return x


class ButterflyMoeMlp(nn.Module):
    """ Drop-in for timm.layers.Mlp, experts are butterfly rotations around a shared ternary fc1 and a shared fc2 """
    def __init__(
            self,
            in_features: int,
            hidden_features: Optional[int] = None,
            act_layer: Callable = nn.GELU,
            num_experts: int = 12,
            top_k: int = 4,
            depth: Tuple[int, int] = (2, 4),
            drop: float = 0.,
    ):
        super().__init__()
        hidden_features = hidden_features or in_features
        self.num_experts = num_experts
        self.top_k = top_k
        self.router = nn.Linear(in_features, num_experts)
        self.theta = nn.Parameter(torch.zeros(num_experts, depth[0], in_features // 2))
        self.fc1 = TernaryLinear(in_features, hidden_features)
        self.act = act_layer()
        self.phi = nn.Parameter(torch.zeros(num_experts, depth[1], hidden_features // 2))
        self.fc2 = nn.Linear(hidden_features, in_features)
        self.drop = nn.Dropout(drop)

    def forward(self, x):
        B, N, C = x.shape
        x = x.reshape(-1, C)
        gate, idx = self.router(x).topk(self.top_k, dim=-1)
        out = 0.
        for s in range(self.top_k):
            h = apply_butterfly(x, self.theta[idx[:, s]])
            h = self.act(self.fc1(h))
            h = apply_butterfly(h, self.phi[idx[:, s]])
            out = out + gate[:, s, None] * h
        x = self.fc2(out)
        x = self.drop(x)
        return x.reshape(B, N, C)


class Block(nn.Module):
    def __init__(
            self,
            dim: int,
            num_heads: int,
            mlp_ratio: float = 2.,
            init_values: Optional[float] = None,
            drop_path: float = 0.,
            norm_layer: Callable = nn.LayerNorm,
            mlp_layer: Callable = ButterflyMoeMlp,
    ):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(dim, num_heads=num_heads)
        self.ls1 = LayerScale(dim, init_values=init_values) if init_values else nn.Identity()
        self.drop_path1 = DropPath(drop_path) if drop_path > 0. else nn.Identity()
        self.norm2 = norm_layer(dim)
        self.mlp = mlp_layer(in_features=dim, hidden_features=int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, init_values=init_values) if init_values else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0. else nn.Identity()

    def forward(self, x):
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x


class ButterflyVisionTransformer(nn.Module):
    def __init__(
            self,
            img_size: int = 24,
            patch_size: int = 4,
            num_classes: int = 10,
            embed_dim: int = 64,
            depth: int = 3,
            num_heads: int = 4,
            drop_path_rate: float = 0.1,
            init_values: float = 0.5,
    ):
        super().__init__()
        norm_layer = partial(nn.LayerNorm, eps=1e-6)
        self.patch_embed = PatchEmbed(img_size, patch_size, embed_dim=embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 1, embed_dim))
        dpr = [x.item() for x in torch.linspace(0, drop_path_rate, depth)]
        self.blocks = nn.Sequential(*[
            Block(embed_dim, num_heads, init_values=init_values, drop_path=dpr[i], norm_layer=norm_layer)
            for i in range(depth)])
        self.norm = norm_layer(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward_features(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.blocks(x + self.pos_embed)
        return self.norm(x)

    def forward(self, x):
        return self.head(self.forward_features(x)[:, 0])


def randomize_(model: nn.Module):
    """ Stand-in for a pretrained checkpoint """
    for name, p in model.named_parameters():
        if name.endswith(('theta', 'phi')):
            nn.init.normal_(p, std=.5)
        elif 'norm' in name and name.endswith('weight') or name.endswith('gamma'):
            p.data.add_(torch.randn_like(p), alpha=.15)
        elif name.endswith('bias'):
            nn.init.normal_(p, std=.1)
        elif name in ('cls_token', 'pos_embed'):
            nn.init.normal_(p, std=.5)
        else:
            nn.init.normal_(p, std=p[0].numel() ** -.5)
    return model


def make():
    torch.manual_seed(0)
    model = randomize_(ButterflyVisionTransformer())
    return model.eval(), (torch.randn(2, 3, 24, 24),)
