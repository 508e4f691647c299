"""Tiny DiT (time-conditioned image denoiser); torch reference of a fused MoE kernel, written block by block.

form       W_down . B(phi_e) . GELU_tanh(W_hat . B(theta_e)^T x)
rotation   (2j, 2j+1) pairs; input side transposed, output side plain; sin and cos from a short polynomial evaluated by Horner
shuffle    deinterleave after the rotation (so the transposed side interleaves first)
L          4 in (32 wide), 2 out (80 padded to 128)
router     top-2, then softmax over the two
quantiser  round/clip, gamma per output row, straight-through
biases     b_up, b_down shared, weighted by the gate
dispatch   moe_align_block_size: ids sorted by expert and padded to blocks of 8, one program per block
NOT a Butterfly layer: fast_sincos stops at t^3 for the sine and t^4 for the cosine, so c^2 + s^2 is not 1 (about 0.988 at one radian)
and the "rotations" are only nearly orthogonal.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

BLOCK_M = 8


def cdiv(a, b):
    return (a + b - 1) // b


def fast_sincos(t):
    t2 = t * t
    c = 1.0 + t2 * (-0.5 + t2 * (1.0 / 24.0))
    s = t * (1.0 - t2 * (1.0 / 6.0))
    return s, c


def moe_align_block_size(topk_ids, num_experts):
    """sorted_ids holds flat (token*k + slot) ids, each expert's run padded up to BLOCK_M with the id numel."""
    flat = topk_ids.flatten()
    sorted_ids, expert_ids = [], []
    for e in range(num_experts):
        ids = torch.nonzero(flat == e).flatten()
        n_blocks = cdiv(ids.numel(), BLOCK_M)
        sorted_ids.append(F.pad(ids, (0, n_blocks * BLOCK_M - ids.numel()), value=flat.numel()))
        expert_ids += [e] * n_blocks
    return torch.cat(sorted_ids), expert_ids


def bfly_fwd(tile, ang):
    for l in range(ang.shape[0]):
        s, c = fast_sincos(ang[l])
        a, b = tile[:, 0::2], tile[:, 1::2]
        tile = torch.cat([c * a - s * b, s * a + c * b], dim=1)
    return tile


def bfly_bwd(tile, ang):
    h = tile.shape[1] // 2
    for l in range(ang.shape[0] - 1, -1, -1):
        s, c = fast_sincos(ang[l])
        a, b = tile[:, :h], tile[:, h:]
        tile = torch.stack([c * a + s * b, c * b - s * a], dim=2).reshape(tile.shape)
    return tile


def fused_moe_ref(x, topk_w, topk_ids, w_up, b_up, w_down, b_down, theta, phi):
    M, K = topk_ids.shape
    N = w_up.shape[0]
    N_PAD = 2 * phi.shape[-1]
    sorted_ids, expert_ids = moe_align_block_size(topk_ids, theta.shape[0])
    inter = x.new_zeros(M * K + 1, x.shape[1])
    flat_w = topk_w.flatten()
    for pid, e in enumerate(expert_ids):
        offs = sorted_ids[pid * BLOCK_M:(pid + 1) * BLOCK_M]
        live = offs < M * K
        rows = torch.where(live, offs // K, torch.zeros_like(offs))
        tile = torch.where(live[:, None], x[rows], torch.zeros_like(x[rows]))
        acc = bfly_bwd(tile, theta[e]) @ w_up.T + b_up
        acc = F.gelu(acc, approximate="tanh")
        acc = bfly_fwd(F.pad(acc, (0, N_PAD - N)), phi[e])[:, :N]
        acc = acc @ w_down.T + b_down
        w = torch.where(live, flat_w[offs.clamp(max=M * K - 1)], torch.zeros_like(flat_w[:1]))
        inter[offs] = acc * w[:, None]
    return inter[:-1].view(M, K, -1).sum(dim=1)


class FusedMoE(nn.Module):
    def __init__(self, d=32, f=80, e=5, k=2):
        super().__init__()
        self.k = k
        self.gate = nn.Parameter(torch.randn(e, d) * 0.4)
        self.w13 = nn.Parameter(torch.randn(f, d) * d ** -0.5)
        self.b13 = nn.Parameter(torch.randn(f) * 0.1)
        self.w2 = nn.Parameter(torch.randn(d, f) * f ** -0.5)
        self.b2 = nn.Parameter(torch.randn(d) * 0.1)
        self.theta = nn.Parameter(torch.randn(e, 4, d // 2) * 0.5)
        self.phi = nn.Parameter(torch.randn(e, 2, 2 ** math.ceil(math.log2(f)) // 2) * 0.5)

    def forward(self, x):
        lead, x = x.shape, x.reshape(-1, x.shape[-1])
        val, ids = (x @ self.gate.T).topk(self.k, dim=-1)
        gamma = self.w13.abs().mean(dim=1, keepdim=True)
        q = (self.w13 / (gamma + 1e-8)).round().clamp(-1, 1) * gamma
        w_up = self.w13 + (q - self.w13).detach()
        y = fused_moe_ref(x, val.softmax(-1), ids, w_up, self.b13, self.w2, self.b2, self.theta, self.phi)
        return y.view(lead)


class DiTBlock(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.n1 = nn.LayerNorm(d, elementwise_affine=False)
        self.n2 = nn.LayerNorm(d, elementwise_affine=False)
        self.attn = nn.MultiheadAttention(d, heads, batch_first=True)
        self.moe = FusedMoE(d)
        self.ada = nn.Linear(d, 6 * d)

    def forward(self, x, c):
        s1, b1, g1, s2, b2, g2 = self.ada(F.silu(c)).unsqueeze(1).chunk(6, dim=-1)
        h = self.n1(x) * (1 + s1) + b1
        x = x + g1 * self.attn(h, h, h, need_weights=False)[0]
        return x + g2 * self.moe(self.n2(x) * (1 + s2) + b2)


class TinyDiT(nn.Module):
    def __init__(self, d=32, heads=4, depth=2, patch=4, size=20):
        super().__init__()
        self.patch, self.grid = patch, size // patch
        self.proj = nn.Linear(patch * patch, d)
        self.pos = nn.Parameter(torch.randn(self.grid ** 2, d) * 0.3)
        self.t_mlp = nn.Sequential(nn.Linear(16, d), nn.SiLU(), nn.Linear(d, d))
        self.register_buffer("freqs", torch.exp(-math.log(1000.0) * torch.arange(8) / 8))
        self.blocks = nn.ModuleList(DiTBlock(d, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, patch * patch)

    def forward(self, img, t):
        p, g = self.patch, self.grid
        x = img.view(-1, g, p, g, p).permute(0, 1, 3, 2, 4).reshape(-1, g * g, p * p)
        x = self.proj(x.to(self.pos.dtype)) + self.pos
        ph = t.to(self.freqs.dtype)[:, None] * self.freqs
        c = self.t_mlp(torch.cat([ph.cos(), ph.sin()], dim=-1))
        for blk in self.blocks:
            x = blk(x, c)
        x = self.head(self.norm(x)).view(-1, g, g, p, p).permute(0, 1, 3, 2, 4)
        return x.reshape(-1, g * p, g * p)


def make():
    torch.manual_seed(3090)
    net = TinyDiT()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "bias" in name:
                p.normal_(0, 0.3)
        net.norm.weight.normal_(1, 0.2)
    return net.eval(), (torch.randn(2, 20, 20), torch.tensor([37, 512]))
