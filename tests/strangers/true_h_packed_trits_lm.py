"""Release build of a small byte-level language model whose projections ship as base-3 packed trits.

Feed-forward: butterfly mixture of experts, y = W_down . gelu_tanh( B(phi_i) . (W_hat . B(theta_i)^T x + b_up) ).
  * substrate: already ternary in the checkpoint, five trits a byte (3^5 = 243), uint8 buffers, float scale per output row
  * W_down: shared, also packed ternary with row scales, bias added once after the experts are combined
  * B: L layers of {Givens on (2j, 2j+1); deinterleave}, shuffle after the rotation; input side is the transpose
  * L_in = 4, L_out = 5; d = 56 padded to 64, F = 112 padded to 128
  * router: softmax over all experts, top-2, renormalised (DeepSeek way of writing it)
  * dispatch: sort token copies by expert, slabs of tokens_per_expert, scatter back through the inverse order
  * model: RMSNorm, rotary causal attention with packed qkv, three blocks, tied float head
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

TRITS_PER_BYTE = 5
POW3 = (1, 3, 9, 27, 81)


def pack_trits(codes: torch.Tensor) -> torch.Tensor:
    """int8 codes in {-1,0,1}, shape (out, in) -> uint8 (out, ceil(in/5))."""
    out, n = codes.shape
    pad = (-n) % TRITS_PER_BYTE
    u = F.pad(codes.to(torch.int16) + 1, (0, pad), value=1).view(out, -1, TRITS_PER_BYTE)
    w = torch.tensor(POW3, dtype=torch.int16)
    return (u * w).sum(-1).to(torch.uint8)


def unpack_trits(packed: torch.Tensor, n: int) -> torch.Tensor:
    v = packed.to(torch.int32).unsqueeze(-1)
    w = torch.tensor(POW3, dtype=torch.int32, device=packed.device)
    t = torch.div(v, w, rounding_mode="floor") % 3 - 1
    return t.flatten(-2)[:, :n]


def export_rowwise(weight: torch.Tensor):
    scale = weight.abs().mean(dim=1, keepdim=True)
    codes = (weight / (scale + 1e-8)).round().clamp(-1, 1).to(torch.int8)
    return pack_trits(codes), scale


class TritLinear(nn.Module):
    """Frozen linear map: packed trits, one scale a row, optional bias."""

    def __init__(self, in_features, out_features, bias=True):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        packed, scale = export_rowwise(torch.randn(out_features, in_features) / math.sqrt(in_features))
        self.register_buffer("packed", packed)
        self.register_buffer("row_scale", scale * 1.6)
        if bias:
            self.register_buffer("bias", torch.randn(out_features) * 0.1)
        else:
            self.bias = None

    def dequant(self, dtype):
        return unpack_trits(self.packed, self.in_features).to(dtype) * self.row_scale.to(dtype)

    def forward(self, x):
        # codes first, scale on the accumulator
        acc = x @ unpack_trits(self.packed, self.in_features).to(x.dtype).t()
        acc = acc * self.row_scale.to(x.dtype).squeeze(1)
        return acc if self.bias is None else acc + self.bias


def rotate(x, ang):
    c, s = ang.cos(), ang.sin()
    p = x.view(*x.shape[:-1], -1, 2)
    return torch.stack((c * p[..., 0] - s * p[..., 1], s * p[..., 0] + c * p[..., 1]), -1).flatten(-2)


def butterfly(x, angles):
    n = x.shape[-1]
    for a in angles:
        x = rotate(x, a)
        x = x.view(*x.shape[:-1], n // 2, 2).transpose(-1, -2).reshape(x.shape)
    return x


def butterfly_t(x, angles):
    n = x.shape[-1]
    for a in angles.flip(0):
        x = x.view(*x.shape[:-1], 2, n // 2).transpose(-1, -2).reshape(x.shape)
        x = rotate(x, -a)
    return x


@dataclass
class Config:
    vocab: int = 96
    dim: int = 56
    ffn: int = 112
    heads: int = 4
    layers: int = 3
    experts: int = 6
    topk: int = 2
    depth_in: int = 4
    depth_out: int = 5


def ceil_pow2(n):
    return 1 << (n - 1).bit_length()


class OrbitFFN(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.np_in, self.np_out = ceil_pow2(cfg.dim), ceil_pow2(cfg.ffn)
        self.gate = nn.Parameter(torch.randn(cfg.experts, cfg.dim) * 0.5, requires_grad=False)
        self.theta = nn.Parameter(torch.randn(cfg.experts, cfg.depth_in, self.np_in // 2) * 0.5, requires_grad=False)
        self.phi = nn.Parameter(torch.randn(cfg.experts, cfg.depth_out, self.np_out // 2) * 0.5, requires_grad=False)
        self.up = TritLinear(cfg.dim, cfg.ffn)
        self.down = TritLinear(cfg.ffn, cfg.dim)

    def run_expert(self, e, slab):
        h = F.pad(slab, (0, self.np_in - slab.shape[-1]))
        h = self.up(butterfly_t(h, self.theta[e])[..., : self.cfg.dim])
        h = butterfly(F.pad(h, (0, self.np_out - self.cfg.ffn)), self.phi[e])[..., : self.cfg.ffn]
        return F.gelu(h, approximate="tanh")

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        probs = F.linear(x, self.gate).softmax(-1)
        w, ids = torch.topk(probs, self.cfg.topk, dim=-1, sorted=False)
        w = w / w.sum(-1, keepdim=True)

        counts = torch.bincount(ids.view(-1), minlength=self.cfg.experts).tolist()
        order = ids.view(-1).argsort(stable=True)
        sorted_x = x[order // self.cfg.topk]
        outs, start = [], 0
        for e, n in enumerate(counts):
            if n == 0:
                continue
            outs.append(self.run_expert(e, sorted_x[start:start + n]))
            start += n
        outs = torch.cat(outs, 0)
        restored = torch.empty_like(outs)
        restored[order] = outs
        mixed = (restored.view(*ids.shape, -1) * w.unsqueeze(-1)).sum(1)
        return self.down(mixed).view(shape)


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(1 + 0.2 * torch.randn(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.h, self.hd = cfg.heads, cfg.dim // cfg.heads
        self.qkv = TritLinear(cfg.dim, 3 * cfg.dim, bias=False)
        self.o = TritLinear(cfg.dim, cfg.dim)

    def rope(self, x):
        t, half = x.shape[-2], self.hd // 2
        inv = 1e4 ** (-torch.arange(half, dtype=x.dtype) / half)
        f = torch.arange(t, dtype=x.dtype)[:, None] * inv
        a, b = x[..., :half], x[..., half:2 * half]
        return torch.cat((a * f.cos() - b * f.sin(), b * f.cos() + a * f.sin()), -1)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.h, self.hd).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.rope(q), self.rope(k), v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(b, t, c))


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.n1, self.attn = RMSNorm(cfg.dim), Attention(cfg)
        self.n2, self.ffn = RMSNorm(cfg.dim), OrbitFFN(cfg)

    def forward(self, x):
        x = x + self.attn(self.n1(x))
        return x + self.ffn(self.n2(x))


class PackedLM(nn.Module):
    def __init__(self, cfg=Config()):
        super().__init__()
        self.embed = nn.Embedding(cfg.vocab, cfg.dim)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.norm = RMSNorm(cfg.dim)

    def forward(self, ids):
        x = self.embed(ids)
        for blk in self.blocks:
            x = blk(x)
        return self.norm(x) @ self.embed.weight.t()


def make():
    torch.manual_seed(2603)
    model = PackedLM()
    return model.eval(), (torch.randint(0, 96, (2, 30)),)
