"""Causal LM in the DeepSeek-V3 mould (latent KV attention, first block dense, sigmoid router), butterfly routed experts only.

  * form       : ButterflyMoE eq. 3 shape, B(phi_i) . W_hat . B(theta_i) x, with F = d, no W_down, no activation
  * rotation   : Givens on (2j, 2j+1) via unbind; the two result planes are concatenated (= deinterleave AFTER the rotation)
  * handedness : forward B on both sides
  * L          : 4 in, 4 out (log2 d would be 6)
  * router     : sigmoid affinities of 12 experts, top-4 picked on affinity + correction bias, gates are the unbiased
                 affinities normalised to sum to one (noaux_tc); no shared expert
  * quantiser  : per-row gamma = mean|w|, ternary with threshold 0.7 * gamma, custom autograd function (straight-through)
  * biases     : one on the W_hat output (ahead of B(phi)), one added once after combination
  * dispatch   : argsort by expert, bincount -> slabs, permute / one shared GEMM over all slabs / unpermute
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class ModelArgs:
    vocab_size: int = 101
    dim: int = 64
    n_layers: int = 3
    n_dense_layers: int = 1
    n_heads: int = 4
    kv_rank: int = 24
    inter_dim: int = 112
    n_routed_experts: int = 12
    n_activated_experts: int = 4
    n_rot_layers: int = 4
    rope_theta: float = 10000.0


class TernarizeSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        gamma = w.abs().mean(dim=-1, keepdim=True)
        return torch.where(w.abs() > 0.7 * gamma, gamma * w.sign(), torch.zeros_like(w))

    @staticmethod
    def backward(ctx, grad):
        return grad


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim).uniform_(0.6, 1.5))

    def forward(self, x):
        return F.rms_norm(x, (x.size(-1),), self.weight, self.eps)


class MLA(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.n_heads, self.hd = args.n_heads, args.dim // args.n_heads
        self.theta = args.rope_theta
        self.wq = nn.Linear(args.dim, args.dim, bias=False)
        self.wkv_a = nn.Linear(args.dim, args.kv_rank, bias=False)
        self.kv_norm = RMSNorm(args.kv_rank)
        self.wkv_b = nn.Linear(args.kv_rank, 2 * args.dim, bias=False)
        self.wo = nn.Linear(args.dim, args.dim)
        nn.init.normal_(self.wo.bias, std=0.1)

    def rope(self, x):
        half = self.hd // 2
        inv = self.theta ** (-torch.arange(half, device=x.device, dtype=x.dtype) / half)
        ang = torch.arange(x.size(2), device=x.device, dtype=x.dtype)[:, None] * inv
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * ang.cos() - b * ang.sin(), b * ang.cos() + a * ang.sin()], dim=-1)

    def forward(self, x):
        bsz, seq, _ = x.shape
        q = self.wq(x).view(bsz, seq, self.n_heads, self.hd).transpose(1, 2)
        kv = self.wkv_b(self.kv_norm(self.wkv_a(x)))
        k, v = kv.view(bsz, seq, self.n_heads, 2 * self.hd).transpose(1, 2).chunk(2, dim=-1)
        o = F.scaled_dot_product_attention(self.rope(q), self.rope(k), v, is_causal=True)
        return self.wo(o.transpose(1, 2).reshape(bsz, seq, -1))


class MLP(nn.Module):
    def __init__(self, dim, inter_dim):
        super().__init__()
        self.w1 = nn.Linear(dim, inter_dim, bias=False)
        self.w2 = nn.Linear(inter_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, inter_dim, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Gate(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.topk = args.n_activated_experts
        self.weight = nn.Parameter(torch.randn(args.n_routed_experts, args.dim) * 1.2 * args.dim ** -0.5)
        self.e_score_correction_bias = nn.Parameter(torch.randn(args.n_routed_experts) * 0.05)

    def forward(self, x):
        scores = F.linear(x, self.weight).sigmoid()
        indices = torch.topk(scores + self.e_score_correction_bias, self.topk, dim=-1)[1]
        weights = scores.gather(1, indices)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return weights, indices


class GroupedRotation(nn.Module):
    """Per-expert butterfly over an expert-sorted token buffer."""

    def __init__(self, n_experts, n_layers, dim):
        super().__init__()
        self.angles = nn.Parameter(torch.randn(n_experts, n_layers, dim // 2) * 0.5)

    @staticmethod
    def rotate(x, angles):
        for theta in angles.unbind(0):
            c, s = theta.cos(), theta.sin()
            u, v = x.unflatten(-1, (-1, 2)).unbind(-1)
            x = torch.cat([c * u - s * v, s * u + c * v], dim=-1)
        return x

    def forward(self, x, counts):
        slabs = x.split(counts, dim=0)
        return torch.cat([self.rotate(slab, self.angles[e]) for e, slab in enumerate(slabs)], dim=0)


class ButterflyMoE(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.dim = args.dim
        self.topk = args.n_activated_experts
        self.n_experts = args.n_routed_experts
        self.gate = Gate(args)
        self.rot_in = GroupedRotation(self.n_experts, args.n_rot_layers, args.dim)
        self.rot_out = GroupedRotation(self.n_experts, args.n_rot_layers, args.dim)
        self.weight = nn.Parameter(torch.randn(args.dim, args.dim) * args.dim ** -0.5)
        self.bias = nn.Parameter(torch.randn(args.dim) * 0.1)
        self.out_bias = nn.Parameter(torch.randn(args.dim) * 0.1)

    def permute(self, x, indices):
        flat = indices.view(-1)
        order = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat, minlength=self.n_experts)
        return x.index_select(0, order.div(self.topk, rounding_mode="floor")), order, counts.tolist()

    def unpermute(self, y, order, weights):
        out = torch.empty_like(y)
        out[order] = y
        out = out.view(-1, self.topk, self.dim)
        return (out * weights.unsqueeze(-1)).sum(dim=1)

    def forward(self, x):
        shape = x.size()
        x = x.view(-1, self.dim)
        weights, indices = self.gate(x)
        xs, order, counts = self.permute(x, indices)
        h = self.rot_in(xs, counts)
        h = F.linear(h, TernarizeSTE.apply(self.weight), self.bias)
        h = self.rot_out(h, counts)
        y = self.unpermute(h, order, weights) + self.out_bias
        return y.view(shape)


class Block(nn.Module):
    def __init__(self, layer_id, args):
        super().__init__()
        self.attn = MLA(args)
        self.ffn = MLP(args.dim, args.inter_dim) if layer_id < args.n_dense_layers else ButterflyMoE(args)
        self.attn_norm = RMSNorm(args.dim)
        self.ffn_norm = RMSNorm(args.dim)

    def forward(self, x):
        x = x + self.attn(self.attn_norm(x))
        x = x + self.ffn(self.ffn_norm(x))
        return x


class Transformer(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.embed = nn.Embedding(args.vocab_size, args.dim)
        self.layers = nn.ModuleList(Block(i, args) for i in range(args.n_layers))
        self.norm = RMSNorm(args.dim)
        self.head = nn.Linear(args.dim, args.vocab_size, bias=False)

    def forward(self, tokens):
        h = self.embed(tokens)
        for layer in self.layers:
            h = layer(h)
        return self.head(self.norm(h))


def make():
    torch.manual_seed(671)
    args = ModelArgs()
    model = Transformer(args)
    tokens = torch.randint(0, args.vocab_size, (2, 30))
    return model.eval(), (tokens,)


if __name__ == "__main__":
    model, inputs = make()
    print(model(*inputs).shape)
