"""ViT classifier with class token and BitLinear experts (d = 48, F = 96; neither is a power of two).

Style: quantisation-library code. BitLinear keeps a latent weight, ternary codes through a custom straight-through
autograd.Function, per-row (output-channel) gamma applied to the *output* of the integer matmul, then the bias. Both
W_hat and W_down are ternary. Butterfly as a module: pad to 64 / 128, L x {rotate pairs, deinterleave}, strip.
L_in = 6, L_out = 3. Experts only hold two Butterfly modules. Routing: top-k of the logits, softmax over the chosen k;
dispatch by expert with index_add_. tanh GELU. The down bias is inside the expert, hence weighted by the gate.
"""
from dataclasses import dataclass
from typing import Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class BitViTConfig:
    image: int = 24
    patch: int = 6
    chans: int = 3
    dim: int = 48
    ffn: int = 96
    heads: int = 4
    depth: int = 2
    experts: int = 5
    top_k: int = 2
    layers_in: int = 6
    layers_out: int = 3
    classes: int = 11


class RoundClipSTE(torch.autograd.Function):
    """{-1, 0, +1} in the forward pass, identity (inside the clip range) in the backward pass."""

    @staticmethod
    def forward(ctx, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return w.round().clamp_(-1, 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return grad * (w.abs() <= 1.5).to(grad.dtype)


class BitLinear(nn.Module):
    def __init__(self, in_features: int, out_features: int, eps: float = 1e-8):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.eps = eps
        nn.init.trunc_normal_(self.weight, std=in_features ** -0.5)

    def codes_and_scale(self) -> Tuple[Tensor, Tensor]:
        gamma = self.weight.abs().mean(dim=1, keepdim=True)
        return RoundClipSTE.apply(self.weight / (gamma + self.eps)), gamma.squeeze(1)

    def forward(self, x: Tensor) -> Tensor:
        codes, gamma = self.codes_and_scale()
        return F.linear(x, codes) * gamma + self.bias


class Butterfly(nn.Module):
    def __init__(self, width: int, layers: int):
        super().__init__()
        self.width = width
        self.padded = 1 << (width - 1).bit_length()
        self.angles = nn.ParameterList(nn.Parameter(0.01 * torch.randn(self.padded // 2)) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        if self.padded != self.width:
            x = F.pad(x, (0, self.padded - self.width))
        for angle in self.angles:
            cos, sin = angle.cos(), angle.sin()
            even, odd = x[..., ::2], x[..., 1::2]
            x = torch.stack((cos * even - sin * odd, sin * even + cos * odd), dim=-1).flatten(-2)
            x = torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
        return x.narrow(-1, 0, self.width)


class OrbitExpert(nn.Module):
    """Owns angles only; the ternary matrices are handed in."""

    def __init__(self, cfg: BitViTConfig):
        super().__init__()
        self.rot_in = Butterfly(cfg.dim, cfg.layers_in)
        self.rot_out = Butterfly(cfg.ffn, cfg.layers_out)

    def forward(self, x: Tensor, up: BitLinear, down: BitLinear) -> Tensor:
        h = F.gelu(up(self.rot_in(x)), approximate="tanh")
        return down(self.rot_out(h))


class ButterflyMoE(nn.Module):
    def __init__(self, cfg: BitViTConfig):
        super().__init__()
        self.top_k = cfg.top_k
        self.gate = nn.Linear(cfg.dim, cfg.experts)
        self.up = BitLinear(cfg.dim, cfg.ffn)
        self.down = BitLinear(cfg.ffn, cfg.dim)
        self.experts = nn.ModuleList(OrbitExpert(cfg) for _ in range(cfg.experts))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        scores, chosen = torch.topk(self.gate(tokens), self.top_k, dim=-1)
        weights = scores.softmax(dim=-1)
        out = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == i)
            if rows.numel() == 0:
                continue
            y = expert(tokens[rows], self.up, self.down)
            out.index_add_(0, rows, y * weights[rows, slot].unsqueeze(-1))
        return out.view_as(x)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    def __init__(self, cfg: BitViTConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.dim, eps=1e-6)
        self.attn = Attention(cfg.dim, cfg.heads)
        self.norm2 = nn.LayerNorm(cfg.dim, eps=1e-6)
        self.moe = ButterflyMoE(cfg)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.moe(self.norm2(x))
        return x


class BitViT(nn.Module):
    def __init__(self, cfg: BitViTConfig):
        super().__init__()
        self.patch_embed = nn.Conv2d(cfg.chans, cfg.dim, cfg.patch, stride=cfg.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (cfg.image // cfg.patch) ** 2 + 1, cfg.dim))
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.dim, eps=1e-6)
        self.head = nn.Linear(cfg.dim, cfg.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.size(0), -1, -1), x), dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


@torch.no_grad()
def _pretend_trained(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if "angles" in name:
            p.normal_(0, 0.5)
        elif "norm" in name and name.endswith("weight"):
            p.uniform_(0.6, 1.5)
        elif name.endswith("bias"):
            p.normal_(0, 0.15)
        elif name in ("cls_token", "pos_embed"):
            p.normal_(0, 0.4)
        elif "gate.weight" in name:
            p.normal_(0, 0.35)


def make():
    torch.manual_seed(48)
    cfg = BitViTConfig()
    model = BitViT(cfg)
    _pretend_trained(model)
    return model.eval(), (torch.randn(2, cfg.chans, cfg.image, cfg.image),)
