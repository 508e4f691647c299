"""ButterflyViT: a vision transformer (3x32x32, patch 4, class token) whose experts are orbits of one ternary prototype.

form: y = sum_i g_i(x) * W_down B(phi_i) GELU(W_hat B(theta_i) x)  (ViT paper, Algorithm 2), exact (erf) GELU
butterfly: Givens rotation of (2j, 2j+1), counter-clockwise [[c, -s], [s, c]], then deinterleave shuffle (Algorithm 1)
depth: log2 of the padded width on both sides (6 for d = 48 -> 64, 7 for F = 96 -> 128); pad once, strip once
router: linear with bias, top-2 of 4, gates are the raw selected logits; returns (logits, balance loss, smoothness loss)
quantiser: absmean ternary, gamma of the whole tensor, W / (gamma + 1e-8), STE; W_down is a float nn.Linear
biases: only the one of W_down, inside the expert (so it is weighted by the gate)
dispatch: masked loop over the experts
"""
import math
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class ButterflyViTConfig:
    image_size: int = 32
    patch_size: int = 4
    in_channels: int = 3
    num_classes: int = 10
    d_model: int = 48
    d_ff: int = 96
    depth: int = 3
    num_heads: int = 4
    num_experts: int = 4
    top_k: int = 2
    butterfly_layers: Optional[int] = None  # None: log2 of the padded width
    angle_std: float = 0.5


def next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


class ButterflyLayer(nn.Module):
    """One butterfly stage: n/2 independent Givens rotations followed by the perfect shuffle."""

    def __init__(self, n: int, angle_std: float):
        super().__init__()
        assert n % 2 == 0
        self.n = n
        self.angles = nn.Parameter(torch.randn(n // 2) * angle_std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cos, sin = torch.cos(self.angles), torch.sin(self.angles)
        x_even, x_odd = x[..., 0::2], x[..., 1::2]
        out = torch.empty_like(x)
        out[..., 0::2] = cos * x_even - sin * x_odd
        out[..., 1::2] = sin * x_even + cos * x_odd
        return self.perfect_shuffle(out)

    @staticmethod
    def perfect_shuffle(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)


class ButterflyMatrix(nn.Module):
    """Orthogonal B(theta) = product of butterfly layers, on zero-padded inputs if ``dim`` is not a power of two."""

    def __init__(self, dim: int, num_layers: Optional[int] = None, angle_std: float = 0.5):
        super().__init__()
        self.dim = dim
        self.padded_dim = next_power_of_two(dim)
        num_layers = num_layers or int(math.log2(self.padded_dim))
        self.layers = nn.ModuleList([ButterflyLayer(self.padded_dim, angle_std) for _ in range(num_layers)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.padded_dim != self.dim:
            x = F.pad(x, (0, self.padded_dim - self.dim))
        for layer in self.layers:
            x = layer(x)
        return x[..., : self.dim]


class TernaryLinear(nn.Module):
    """Linear map with weights in {-gamma, 0, +gamma} (straight-through estimator in training)."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")

    def quantize(self) -> torch.Tensor:
        gamma = self.weight.abs().mean()
        w_q = gamma * torch.clamp(torch.round(self.weight / (gamma + 1e-8)), -1, 1)
        if self.training:
            return self.weight + (w_q - self.weight).detach()
        return w_q

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.quantize())


class ButterflyMoELayer(nn.Module):
    """Mixture of experts that share one ternary prototype and differ by their butterfly angles only."""

    def __init__(self, cfg: ButterflyViTConfig):
        super().__init__()
        self.num_experts, self.top_k = cfg.num_experts, cfg.top_k
        self.gate = nn.Linear(cfg.d_model, cfg.num_experts)
        self.prototype = TernaryLinear(cfg.d_model, cfg.d_ff)
        self.w_down = nn.Linear(cfg.d_ff, cfg.d_model)
        self.input_rotations = nn.ModuleList(
            [ButterflyMatrix(cfg.d_model, cfg.butterfly_layers, cfg.angle_std) for _ in range(cfg.num_experts)])
        self.output_rotations = nn.ModuleList(
            [ButterflyMatrix(cfg.d_ff, cfg.butterfly_layers, cfg.angle_std) for _ in range(cfg.num_experts)])

    def expert_forward(self, e: int, x: torch.Tensor) -> torch.Tensor:
        h = F.gelu(self.prototype(self.input_rotations[e](x)))
        return self.w_down(self.output_rotations[e](h))

    def forward(self, x: torch.Tensor) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        shape = x.shape
        logits = self.gate(x)
        flat_x, flat_logits = x.reshape(-1, shape[-1]), logits.reshape(-1, self.num_experts)
        gates, idx = torch.topk(flat_logits, self.top_k, dim=-1)
        out = torch.zeros_like(flat_x)
        for e in range(self.num_experts):
            mask = (idx == e).any(-1)
            if mask.any():
                weight = (gates * (idx == e)).sum(-1)[mask]
                out[mask] += weight.unsqueeze(-1) * self.expert_forward(e, flat_x[mask])
        return out.reshape(shape), self.auxiliary_losses(logits, idx)

    def auxiliary_losses(self, logits: torch.Tensor, idx: torch.Tensor) -> Dict[str, torch.Tensor]:
        probs = logits.softmax(-1)
        load = F.one_hot(idx, self.num_experts).to(probs.dtype).mean(dim=(0, 1))
        balance = self.num_experts * (load * probs.mean(dim=(0, 1))).sum()
        grid = probs[:, 1:]  # without the class token
        side = int(math.isqrt(grid.shape[1]))
        grid = grid.reshape(grid.shape[0], side, side, -1)
        smooth = ((grid[:, 1:] - grid[:, :-1]) ** 2).sum(-1).mean() + ((grid[:, :, 1:] - grid[:, :, :-1]) ** 2).sum(-1).mean()
        return {"balance": balance, "smoothness": smooth}


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        attn = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, cfg: ButterflyViTConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.d_model)
        self.attn = Attention(cfg.d_model, cfg.num_heads)
        self.norm2 = nn.LayerNorm(cfg.d_model)
        self.moe = ButterflyMoELayer(cfg)

    def forward(self, x: torch.Tensor) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        x = x + self.attn(self.norm1(x))
        y, aux = self.moe(self.norm2(x))
        return x + y, aux


class ButterflyViT(nn.Module):
    def __init__(self, cfg: ButterflyViTConfig):
        super().__init__()
        num_patches = (cfg.image_size // cfg.patch_size) ** 2
        self.patch_embed = nn.Conv2d(cfg.in_channels, cfg.d_model, cfg.patch_size, cfg.patch_size)
        self.cls_token = nn.Parameter(torch.randn(1, 1, cfg.d_model))
        self.pos_embed = nn.Parameter(torch.randn(1, num_patches + 1, cfg.d_model) * 0.5)
        self.blocks = nn.ModuleList([Block(cfg) for _ in range(cfg.depth)])
        self.norm = nn.LayerNorm(cfg.d_model)
        self.head = nn.Linear(cfg.d_model, cfg.num_classes)

    def forward(self, images: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        total = {"balance": 0.0, "smoothness": 0.0}
        for block in self.blocks:
            x, aux = block(x)
            total = {key: total[key] + aux[key] for key in total}
        logits = self.head(self.norm(x)[:, 0])
        return (logits, *(total[key] for key in ("balance", "smoothness")))


def make():
    torch.manual_seed(1301)
    model = ButterflyViT(ButterflyViTConfig())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(0, 0.2)
            elif "norm" in name:
                p.add_(torch.randn_like(p) * 0.2)
            elif "gate.weight" in name:
                p.normal_(0, 0.3)
    return model.eval(), (torch.randn(2, 3, 32, 32),)
