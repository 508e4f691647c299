"""Small models as people write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchViT(nn.Module):
    """A ViT in timm's manner: patches by convolution, fused qkv, a class token, no experts."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 16, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 16))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 16))
        self.blocks = nn.Sequential(*(PatchBlock() for _ in range(2)))
        self.norm = nn.LayerNorm(16, eps=1e-6)
        self.head = nn.Linear(16, 7)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class PatchBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.drop = nn.Dropout(0.1)

    def attend(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        weights = self.drop((q @ k.transpose(-2, -1) * 4**-0.5).softmax(dim=-1))
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.drop(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class Decoder(nn.Module):
    """A language model's block: embedding, rotary positions, RMSNorm, SwiGLU, tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.norm = nn.RMSNorm(16)
        self.qkv = nn.Linear(16, 48, bias=False)
        self.up, self.gate = nn.Linear(16, 24), nn.Linear(16, 24)
        self.down = nn.Linear(24, 16)
        self.register_buffer("mask", torch.full((6, 6), float("-inf")).triu(1), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(6.0), 0.1 ** torch.arange(4))
        a, b = x.chunk(2, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = (y.unflatten(-1, (2, 8)).transpose(1, 2) for y in self.qkv(x).split(16, -1))
        scores = self.rotate(q) @ self.rotate(k).mT / 8**0.5 + self.mask
        x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        y = self.norm(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return x @ self.embed.weight.T


class ConvNet(nn.Module):
    """Convolutions, batch norms and poolings, then a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.GroupNorm(2, 8),
            nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image)


class WeighedExperts(nn.Module):
    """A loop over experts that all see all tokens; gates scattered into a dense matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        gates, chosen = self.router(x).softmax(-1).topk(2)
        dense = torch.zeros(*x.shape[:-1], 4).scatter(-1, chosen, gates)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            y += dense[..., number : number + 1] * expert(x)
        return y


class MaskedExperts(WeighedExperts):
    """A loop that selects rows with where and writes them with masks."""

    def forward(self, x: Tensor) -> Tensor:
        gates, chosen = torch.max(self.router(x), dim=-1, keepdim=True)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mask = chosen == number
            y = y + torch.where(mask, expert(x) * gates, torch.zeros(()))
        y[chosen[..., 0] == 3] = 0.5
        return y


class StackedExperts(nn.Module):
    """Experts as one tensor: einsum over all, then gather of the chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 8, 6))
        self.router = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.einsum("btd,de->bte", x, self.router).sigmoid()
        values, index = scores.sort(-1, descending=True)
        every = torch.einsum("btd,edf->btef", x, self.w)
        chosen = every.gather(2, index[..., :2, None].expand(-1, -1, -1, 6))
        return torch.einsum("btk,btkf->btf", values[..., :2], chosen), index
