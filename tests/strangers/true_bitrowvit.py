"""ViT classifier with a class token; d = 48 and F = 96, so both rotations zero-pad (64, 128) and strip afterwards.

BitLinear-like modules hold latent weights, per-row gamma, ternary codes through a custom autograd.Function; the scale
is applied to the output of the integer matmul.  W_up AND W_down are ternary and shared; each has a bias (the down bias
sits inside the expert, so the gate weights it).  No activation quantisation.
Shuffle (interleave of the two halves) BEFORE the rotation, as in eq. 4; rotations are explicit 2x2 blocks;
L_in = 4, L_out = 3.  GELU (erf) after B(phi).  Router with bias, top-k first, then softmax over the k logits.
Dispatch: loop over experts, torch.where on the chosen ids, index_add_.
"""
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RoundClipSTE(torch.autograd.Function):
    """ternary codes in {-1, 0, 1}; identity gradient inside [-1, 1], zero outside."""

    @staticmethod
    def forward(ctx, w_scaled: Tensor) -> Tensor:
        ctx.save_for_backward(w_scaled)
        return w_scaled.round().clamp(-1.0, 1.0)

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        (w_scaled,) = ctx.saved_tensors
        return grad_out * (w_scaled.abs() <= 1.0).to(grad_out.dtype)


class TernaryLinear(nn.Module):
    def __init__(self, in_features: int, out_features: int, eps: float = 1e-8):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(out_features, in_features).normal_(std=in_features ** -0.5))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def row_scale(self) -> Tensor:
        return self.weight.abs().mean(dim=1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        gamma = self.row_scale()
        codes = RoundClipSTE.apply(self.weight / (gamma + self.eps))
        return F.linear(x, codes) * gamma.squeeze(1) + self.bias

    @torch.no_grad()
    def sparsity(self) -> float:
        return float(((self.weight / (self.row_scale() + self.eps)).round() == 0).float().mean())


def next_pow2(n: int) -> int:
    return 1 << (n - 1).bit_length()


class ButterflyBank(nn.Module):
    """One butterfly rotation per expert over a possibly padded width."""

    def __init__(self, num_experts: int, width: int, num_layers: int):
        super().__init__()
        self.width = width
        self.padded = next_pow2(width)
        self.angles = nn.Parameter(torch.randn(num_experts, num_layers, self.padded // 2) * 0.01)
        half = self.padded // 2
        perm = torch.empty(self.padded, dtype=torch.long)
        perm[0::2] = torch.arange(half)
        perm[1::2] = torch.arange(half) + half
        self.register_buffer("perm", perm, persistent=False)

    def blocks(self, expert: int) -> Tensor:
        c, s = self.angles[expert].cos(), self.angles[expert].sin()
        top = torch.stack([c, -s], dim=-1)
        bottom = torch.stack([s, c], dim=-1)
        return torch.stack([top, bottom], dim=-2)          # [L, P, 2, 2]

    def forward(self, x: Tensor, expert: int) -> Tensor:
        x = F.pad(x, (0, self.padded - self.width))
        for block in self.blocks(expert):
            x = x.index_select(-1, self.perm)
            pairs = x.view(x.size(0), -1, 2)
            x = torch.einsum("pij,npj->npi", block, pairs).reshape(x.size(0), self.padded)
        return x[:, : self.width]


class BitButterflyMoE(nn.Module):
    def __init__(self, d: int, d_ff: int, num_experts: int, k: int, l_in: int, l_out: int):
        super().__init__()
        self.k, self.num_experts = k, num_experts
        self.router = nn.Linear(d, num_experts)
        self.theta = ButterflyBank(num_experts, d, l_in)
        self.phi = ButterflyBank(num_experts, d_ff, l_out)
        self.up = TernaryLinear(d, d_ff)
        self.down = TernaryLinear(d_ff, d)

    def expert(self, x: Tensor, e: int) -> Tensor:
        h = self.up(self.theta(x, e))
        return self.down(F.gelu(self.phi(h, e)))

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        tokens = x.reshape(-1, shape[-1])
        scores, chosen = torch.topk(self.router(tokens), self.k, dim=-1)
        gates = F.softmax(scores, dim=-1)
        out = torch.zeros_like(tokens)
        for e in range(self.num_experts):
            rows, slots = torch.where(chosen == e)
            if rows.numel() == 0:
                continue
            y = self.expert(tokens[rows], e)
            out.index_add_(0, rows, gates[rows, slots].unsqueeze(-1) * y)
        return out.view(shape)


class SelfAttention(nn.Module):
    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(d, 3 * d)
        self.proj = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(q, k, v)
        return self.proj(o.transpose(1, 2).reshape(B, N, C))


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.dim, eps=1e-6)
        self.attn = SelfAttention(cfg.dim, cfg.heads)
        self.norm2 = nn.LayerNorm(cfg.dim, eps=1e-6)
        self.moe = BitButterflyMoE(cfg.dim, cfg.d_ff, cfg.experts, cfg.top_k, cfg.l_in, cfg.l_out)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.moe(self.norm2(x))
        return x


@dataclass
class Config:
    image: int = 24
    patch: int = 4
    dim: int = 48
    d_ff: int = 96
    heads: int = 3
    depth: int = 2
    experts: int = 8
    top_k: int = 2
    l_in: int = 4
    l_out: int = 3
    classes: int = 10


class BitViT(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        n = (cfg.image // cfg.patch) ** 2
        self.patch_embed = nn.Conv2d(3, cfg.dim, cfg.patch, stride=cfg.patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, cfg.dim) * 0.3)
        self.pos_embed = nn.Parameter(torch.randn(1, n + 1, cfg.dim) * 0.3)
        self.blocks = nn.ModuleList([Block(cfg) for _ in range(cfg.depth)])
        self.norm = nn.LayerNorm(cfg.dim, eps=1e-6)
        self.head = nn.Linear(cfg.dim, cfg.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.size(0), -1, -1), x], dim=1) + self.pos_embed
        for blk in self.blocks:
            x = blk(x)
        return self.head(self.norm(x)[:, 0])


@torch.no_grad()
def _pretend_trained(model: nn.Module) -> None:
    for m in model.modules():
        if isinstance(m, nn.LayerNorm):
            m.weight.add_(torch.randn_like(m.weight) * 0.2)
            m.bias.add_(torch.randn_like(m.bias) * 0.1)
        elif isinstance(m, TernaryLinear):
            # rows of visibly different magnitude, so that per-row scales matter
            m.weight.mul_(torch.exp(0.4 * torch.randn(m.weight.size(0), 1)))
            m.bias.normal_(std=0.2)
        elif isinstance(m, ButterflyBank):
            m.angles.normal_(std=0.5)
        elif isinstance(m, BitButterflyMoE):
            m.router.weight.normal_(std=0.25)
            m.router.bias.normal_(std=0.3)


def make():
    torch.manual_seed(158)
    model = BitViT(Config())
    _pretend_trained(model)
    return model.eval(), (torch.randn(2, 3, 24, 24),)
