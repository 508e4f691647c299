""" Vision Transformer with shared-ternary rotated-expert MLPs, timm layout.

Mlp expert: fc2 . B(phi) . GELU(W_hat . LayerScale(B(theta) x) + b)
* shuffle: deinterleave (evens, odds) after the rotation; B forward on both sides; 4 layers each
* widths 48 and 96, zero-padded to 64 and 128 once around the layers
* router: softmax over all, top-2 of 6, renormalised
* quantiser: round/clip with per-tensor gamma, STE; fc2 float; biases on fc1 and fc2 (fc2's within the gate)
* dispatch: nonzero per expert and index_add_
NOT a Butterfly layer: a learnt gain per channel (LayerScale, `ls_rot`) stands between B(theta) and the ternary W_hat,
so the input side is diag(gain) . B(theta), which isn't orthogonal, and W_hat . diag(gain) isn't ternary by gamma.
"""
from functools import partial
from typing import Optional, Type

import torch
import torch.nn as nn
import torch.nn.functional as F


def to_pow2(n: int) -> int:
    return 1 << (n - 1).bit_length()


class DropPath(nn.Module):
    def __init__(self, drop_prob: float = 0., scale_by_keep: bool = True):
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep

    def forward(self, x):
        if self.drop_prob == 0. or not self.training:
            return x
        keep_prob = 1 - self.drop_prob
        random_tensor = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep_prob)
        return x * random_tensor.div_(keep_prob if self.scale_by_keep else 1.)


class LayerScale(nn.Module):
    def __init__(self, dim: int, init_values: float = 1e-5, inplace: bool = False):
        super().__init__()
        self.inplace = inplace
        self.gamma = nn.Parameter(init_values * torch.ones(dim))

    def forward(self, x):
        return x.mul_(self.gamma) if self.inplace else x * self.gamma


class TernaryLinear(nn.Linear):
    def forward(self, x):
        gamma = self.weight.abs().mean()
        wq = (self.weight / (gamma + 1e-8)).round().clamp(-1, 1) * gamma
        return F.linear(x, self.weight + (wq - self.weight).detach(), self.bias)


class GivensMixer(nn.Module):
    """ Per-expert stack of pairwise channel rotations with a perfect shuffle. """

    def __init__(self, dim: int, depth: int, num_experts: int):
        super().__init__()
        self.dim = dim
        self.pad = to_pow2(dim) - dim
        self.angle = nn.Parameter(torch.empty(num_experts, depth, (dim + self.pad) // 2))
        nn.init.normal_(self.angle, std=0.5)

    def forward(self, x, expert: int):
        x = F.pad(x, (0, self.pad))
        for angle in self.angle[expert].unbind(0):
            c, s = angle.cos(), angle.sin()
            a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
            x = torch.cat([a * c - b * s, a * s + b * c], dim=-1)
        return x[..., :self.dim]


class RotatedMoeMlp(nn.Module):
    def __init__(
            self,
            in_features: int,
            hidden_features: Optional[int] = None,
            num_experts: int = 6,
            top_k: int = 2,
            depth: int = 4,
            act_layer: Type[nn.Module] = nn.GELU,
            init_values: float = 1.0,
    ):
        super().__init__()
        hidden_features = hidden_features or in_features
        self.num_experts = num_experts
        self.top_k = top_k
        self.gate = nn.Linear(in_features, num_experts, bias=False)
        self.rot1 = GivensMixer(in_features, depth, num_experts)
        self.ls_rot = LayerScale(in_features, init_values)
        self.fc1 = TernaryLinear(in_features, hidden_features)
        self.act = act_layer()
        self.rot2 = GivensMixer(hidden_features, depth, num_experts)
        self.fc2 = nn.Linear(hidden_features, in_features)

    def forward_expert(self, x, i: int):
        x = self.ls_rot(self.rot1(x, i))
        x = self.act(self.fc1(x))
        return self.fc2(self.rot2(x, i))

    def forward(self, x):
        B, N, C = x.shape
        x = x.reshape(-1, C)
        weight, index = self.gate(x).softmax(dim=-1).topk(self.top_k, dim=-1)
        weight = weight / weight.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(x)
        for i in range(self.num_experts):
            tok, slot = torch.nonzero(index == i, as_tuple=True)
            if tok.numel() == 0:
                continue
            out.index_add_(0, tok, self.forward_expert(x[tok], i) * weight[tok, slot, None])
        return out.reshape(B, N, C)


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int = 4, qkv_bias: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, mlp_layer, norm_layer, drop_path: float = 0.):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(dim, num_heads)
        self.ls1 = LayerScale(dim, 0.5)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm_layer(dim)
        self.mlp = mlp_layer(in_features=dim, hidden_features=int(dim * mlp_ratio))
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x):
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return x


class VisionTransformer(nn.Module):
    def __init__(self, img_size=24, patch_size=6, in_chans=3, num_classes=10, embed_dim=48, depth=2, num_heads=4,
                 mlp_ratio=2., num_reg_tokens=2, drop_path_rate=0.1):
        super().__init__()
        norm_layer = partial(nn.LayerNorm, eps=1e-6)
        self.patch_embed = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim) * .5)
        self.reg_token = nn.Parameter(torch.randn(1, num_reg_tokens, embed_dim) * .5)
        self.pos_embed = nn.Parameter(torch.randn(1, (img_size // patch_size) ** 2, embed_dim) * .5)
        dpr = [r.item() for r in torch.linspace(0, drop_path_rate, depth)]
        self.blocks = nn.Sequential(*[
            Block(embed_dim, num_heads, mlp_ratio, RotatedMoeMlp, norm_layer, dpr[i]) for i in range(depth)])
        self.norm = norm_layer(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward_features(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), self.reg_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.norm(self.blocks(x))

    def forward(self, x):
        return self.head(self.forward_features(x)[:, 0])


def _init(m: nn.Module):
    if isinstance(m, nn.LayerNorm):
        nn.init.uniform_(m.weight, 0.7, 1.3)
        nn.init.normal_(m.bias, std=0.1)
    elif isinstance(m, LayerScale):
        m.gamma.data.mul_(torch.empty_like(m.gamma).uniform_(0.6, 1.5))
    elif isinstance(m, (nn.Linear, nn.Conv2d)) and m.bias is not None:
        nn.init.normal_(m.bias, std=0.1)
    if isinstance(m, RotatedMoeMlp):
        nn.init.normal_(m.gate.weight, std=0.3)


def make():
    torch.manual_seed(58)
    model = VisionTransformer()
    model.apply(_init)
    return model.eval(), (torch.randn(3, 3, 24, 24),)
