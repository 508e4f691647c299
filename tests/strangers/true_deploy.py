"""Serving build of a ButterflyViT classifier (Algorithm 2).  No trainable weights are left in the FFN.

Both shared projections are stored already ternary as int8 buffers with a per-output-row float scale (W_down is ternary too);
an expert is a small module holding only precomputed cos/sin tables for its two rotations.  Rotations are FFT style: stage s
pairs channels at distance 2**s, no shuffle; L_in = 5, L_out = 3.  GELU (erf) between W_up and B(phi).  Router: softmax,
top-2, renormalised.  Dispatch: (token, expert) pairs sorted by expert, one contiguous chunk each, index_add back.
Biases: b_up before the GELU, b_down inside the expert (weighted by the gate).  36 patches + class token.
"""
from typing import List

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Int8TernaryLinear(nn.Module):
    w_q: Tensor
    w_scale: Tensor
    bias: Tensor

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.register_buffer("w_q", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("w_scale", torch.ones(out_features))
        self.register_buffer("bias", torch.zeros(out_features))

    def load_float(self, w: Tensor, b: Tensor) -> None:
        gamma = w.abs().mean(dim=1)
        q = (w / (gamma + 1e-8).unsqueeze(1)).round().clamp(-1, 1)
        self.w_q.copy_(q.to(torch.int8))
        self.w_scale.copy_(gamma)
        self.bias.copy_(b)

    def forward(self, x: Tensor) -> Tensor:
        acc = torch.matmul(x, self.w_q.to(x.dtype).t())
        return acc * self.w_scale + self.bias


class RotationTable(nn.Module):
    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, stages: int):
        super().__init__()
        self.width, self.stages = width, stages
        self.register_buffer("cos", torch.ones(stages, width // 2))
        self.register_buffer("sin", torch.zeros(stages, width // 2))

    def load_angles(self, angles: Tensor) -> None:
        self.cos.copy_(angles.cos())
        self.sin.copy_(angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        n = x.size(0)
        for s in range(self.stages):
            half = 1 << s
            blocks = self.width // (2 * half)
            lo, hi = x.reshape(n, blocks, 2, half).unbind(dim=2)
            c = self.cos[s].view(blocks, half)
            sn = self.sin[s].view(blocks, half)
            x = torch.stack((c * lo - sn * hi, sn * lo + c * hi), dim=2).reshape(n, self.width)
        return x


class Expert(nn.Module):
    def __init__(self, dim: int, hidden: int, l_in: int, l_out: int):
        super().__init__()
        self.rot_in = RotationTable(dim, l_in)
        self.rot_out = RotationTable(hidden, l_out)

    def forward(self, x: Tensor, up: Int8TernaryLinear, down: Int8TernaryLinear) -> Tensor:
        return down(self.rot_out(F.gelu(up(self.rot_in(x)))))


class MoEFeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int, n_experts: int, top_k: int):
        super().__init__()
        self.n_experts, self.top_k = n_experts, top_k
        self.router = nn.Linear(dim, n_experts, bias=False)
        self.up = Int8TernaryLinear(dim, hidden)
        self.down = Int8TernaryLinear(hidden, dim)
        self.experts = nn.ModuleList([Expert(dim, hidden, 5, 3) for _ in range(n_experts)])

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        probs = self.router(x).softmax(dim=-1)
        weight, chosen = torch.topk(probs, self.top_k, dim=-1)
        weight = weight / weight.sum(dim=-1, keepdim=True)

        flat = chosen.reshape(-1)
        order = torch.argsort(flat, stable=True)
        token_of = order // self.top_k
        counts: List[int] = torch.bincount(flat, minlength=self.n_experts).tolist()

        chunks = x[token_of].split(counts)
        outs = []
        for expert, chunk in zip(self.experts, chunks):
            if chunk.size(0) == 0:
                continue
            outs.append(expert(chunk, self.up, self.down))
        y = torch.cat(outs, dim=0) * weight.reshape(-1)[order].unsqueeze(1)
        return torch.zeros_like(x).index_add_(0, token_of, y).view(shape)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        a = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((a @ v).transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    def __init__(self, dim: int, hidden: int, heads: int, n_experts: int, top_k: int):
        super().__init__()
        self.ln1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.ln2 = nn.LayerNorm(dim, eps=1e-6)
        self.moe = MoEFeedForward(dim, hidden, n_experts, top_k)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.moe(self.ln2(x))


class ButterflyViTServing(nn.Module):
    def __init__(self, image: int = 24, patch: int = 4, dim: int = 32, hidden: int = 64, heads: int = 4,
                 depth: int = 2, n_experts: int = 6, top_k: int = 2, classes: int = 10):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (image // patch) ** 2 + 1, dim))
        self.blocks = nn.Sequential(*[Block(dim, hidden, heads, n_experts, top_k) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.size(0), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


@torch.no_grad()
def _fake_checkpoint(model: nn.Module, g: torch.Generator) -> None:
    rnd = lambda *s: torch.randn(*s, generator=g)
    for m in model.modules():
        if isinstance(m, Int8TernaryLinear):
            o, i = m.w_q.shape
            m.load_float(rnd(o, i) * (0.5 + torch.rand(o, 1, generator=g)) * i ** -0.5, 0.1 * rnd(o))
        elif isinstance(m, RotationTable):
            m.load_angles(0.5 * rnd(m.stages, m.width // 2))
        elif isinstance(m, nn.LayerNorm):
            m.weight.add_(0.2 * rnd(*m.weight.shape))
            m.bias.add_(0.1 * rnd(*m.bias.shape))
        elif isinstance(m, MoEFeedForward):
            m.router.weight.copy_(0.4 * rnd(*m.router.weight.shape))
    model.cls_token.copy_(0.5 * rnd(*model.cls_token.shape))
    model.pos_embed.copy_(0.3 * rnd(*model.pos_embed.shape))


def make():
    torch.manual_seed(7)
    model = ButterflyViTServing()
    _fake_checkpoint(model, torch.Generator().manual_seed(8))
    model.eval().requires_grad_(False)
    return model, (torch.randn(1, 3, 24, 24),)
