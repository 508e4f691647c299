"""LLaMA-family decoder (RMSNorm, RoPE, grouped-query attention with a passed KV cache, SwiGLU dense first layer and SwiGLU
always-on expert) with butterfly routed experts and DeepSeek-V3 style sigmoid routing. One forward is a chunk after a cached prefix.

form        W2 . B(phi_e) . GELU_erf( W1_hat . B(theta_e) x ), Algorithm 2
shuffle     deinterleave (even channels, then odd), after each rotation
handedness  plain on both sides; rotation is a complex multiplication of pairs (2j, 2j+1); L = log2 on both sides (6 and 7)
quantiser   BitNet b1.58 absmean per tensor, straight-through, on W1; W2 float
router      sigmoid scores, selection by score + correction bias, top-3 of 9, scores renormalised and times 1.5
biases      none in the experts
dispatch    argsort by expert, slabs by counts, scatter back and weighted sum over slots (moe_infer)
"""
import math
from dataclasses import dataclass
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class ModelArgs:
    vocab_size: int = 160
    dim: int = 64
    inter_dim: int = 112
    moe_inter_dim: int = 128
    n_layers: int = 3
    n_dense_layers: int = 1
    n_heads: int = 4
    n_kv_heads: int = 2
    n_routed_experts: int = 9
    n_activated_experts: int = 3
    route_scale: float = 1.5
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def apply_rotary_emb(x, cos, sin):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.n_heads, self.n_kv = args.n_heads, args.n_kv_heads
        self.head_dim = args.dim // args.n_heads
        self.wq = nn.Linear(args.dim, self.n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(args.dim, self.n_kv * self.head_dim, bias=False)
        self.wv = nn.Linear(args.dim, self.n_kv * self.head_dim, bias=False)
        self.wo = nn.Linear(self.n_heads * self.head_dim, args.dim, bias=False)

    def forward(self, x, cos, sin, mask, past_k, past_v):
        b, s, _ = x.shape
        q = self.wq(x).view(b, s, self.n_heads, self.head_dim).transpose(1, 2)
        k = self.wk(x).view(b, s, self.n_kv, self.head_dim).transpose(1, 2)
        v = self.wv(x).view(b, s, self.n_kv, self.head_dim).transpose(1, 2)
        q, k = apply_rotary_emb(q, cos, sin), apply_rotary_emb(k, cos, sin)
        k, v = torch.cat((past_k, k), dim=2), torch.cat((past_v, v), dim=2)
        rep = self.n_heads // self.n_kv
        scores = q @ k.repeat_interleave(rep, 1).transpose(2, 3) / math.sqrt(self.head_dim)
        out = (scores + mask).softmax(-1) @ v.repeat_interleave(rep, 1)
        return self.wo(out.transpose(1, 2).reshape(b, s, -1)), k, v


class MLP(nn.Module):
    def __init__(self, dim, inter_dim):
        super().__init__()
        self.w1 = nn.Linear(dim, inter_dim, bias=False)
        self.w2 = nn.Linear(inter_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, inter_dim, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Gate(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.topk, self.route_scale = args.n_activated_experts, args.route_scale
        self.weight = nn.Parameter(torch.empty(args.n_routed_experts, args.dim))
        self.e_score_correction_bias = nn.Parameter(torch.empty(args.n_routed_experts))

    def forward(self, x) -> Tuple[torch.Tensor, torch.Tensor]:
        scores = F.linear(x, self.weight).sigmoid()
        indices = torch.topk(scores + self.e_score_correction_bias, self.topk, dim=-1, sorted=False)[1]
        weights = scores.gather(1, indices)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return indices, weights * self.route_scale


def butterfly(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """x (n, width), angle (layers, width / 2)"""
    cis = torch.polar(torch.ones_like(angle), angle)
    for layer in cis:
        z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * layer
        x = torch.view_as_real(z).transpose(-1, -2).flatten(-2)
    return x


class ButterflyMoE(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.n_routed = args.n_routed_experts
        self.gate = Gate(args)
        self.w1 = nn.Parameter(torch.empty(args.moe_inter_dim, args.dim))
        self.w2 = nn.Parameter(torch.empty(args.dim, args.moe_inter_dim))
        self.theta = nn.Parameter(torch.empty(self.n_routed, int(math.log2(args.dim)), args.dim // 2))
        self.phi = nn.Parameter(torch.empty(self.n_routed, int(math.log2(args.moe_inter_dim)), args.moe_inter_dim // 2))
        self.shared_experts = MLP(args.dim, args.inter_dim // 2)

    def weight_quant(self):
        scale = 1.0 / self.w1.abs().mean().clamp_(min=1e-8)
        u = (self.w1 * scale).round().clamp(-1, 1) / scale
        return self.w1 + (u - self.w1).detach()

    def expert(self, i, x, w1):
        h = F.gelu(F.linear(butterfly(x, self.theta[i]), w1))
        return F.linear(butterfly(h, self.phi[i]), self.w2)

    def moe_infer(self, x, topk_ids, topk_weight):
        cnts = topk_ids.new_zeros((topk_ids.shape[0], self.n_routed))
        cnts.scatter_(1, topk_ids, 1)
        tokens_per_expert = cnts.sum(dim=0).tolist()
        idxs = topk_ids.view(-1).argsort()
        sorted_tokens = x[idxs // topk_ids.shape[1]]
        w1 = self.weight_quant()
        outputs, start_idx = [], 0
        for i, num_tokens in enumerate(tokens_per_expert):
            end_idx = start_idx + num_tokens
            if num_tokens == 0:
                continue
            outputs.append(self.expert(i, sorted_tokens[start_idx:end_idx], w1))
            start_idx = end_idx
        outs = torch.cat(outputs, dim=0)
        new_x = torch.empty_like(outs)
        new_x[idxs] = outs
        return new_x.view(*topk_ids.shape, -1).mul(topk_weight.unsqueeze(-1)).sum(dim=1)

    def forward(self, x):
        flat = x.view(-1, x.shape[-1])
        y = self.moe_infer(flat, *self.gate(flat))
        return y.view_as(x) + self.shared_experts(x)


class Block(nn.Module):
    def __init__(self, layer_id, args: ModelArgs):
        super().__init__()
        self.attn = Attention(args)
        self.ffn = MLP(args.dim, args.inter_dim) if layer_id < args.n_dense_layers else ButterflyMoE(args)
        self.attn_norm = RMSNorm(args.dim, args.norm_eps)
        self.ffn_norm = RMSNorm(args.dim, args.norm_eps)

    def forward(self, x, cos, sin, mask, past_k, past_v):
        a, k, v = self.attn(self.attn_norm(x), cos, sin, mask, past_k, past_v)
        x = x + a
        return x + self.ffn(self.ffn_norm(x)), k, v


class Transformer(nn.Module):
    def __init__(self, args: ModelArgs):
        super().__init__()
        self.embed = nn.Embedding(args.vocab_size, args.dim)
        self.layers = nn.ModuleList([Block(i, args) for i in range(args.n_layers)])
        self.norm = RMSNorm(args.dim, args.norm_eps)
        self.head = nn.Linear(args.dim, args.vocab_size, bias=False)
        hd = args.dim // args.n_heads
        self.register_buffer("inv_freq", args.rope_theta ** (-torch.arange(0, hd, 2).float() / hd), persistent=False)

    def forward(self, tokens, past_k, past_v):
        start, s = past_k.shape[3], tokens.shape[1]
        pos = torch.arange(start, start + s, device=tokens.device)
        freqs = pos[:, None] * self.inv_freq
        cos, sin = freqs.cos(), freqs.sin()
        mask = torch.full((s, start + s), float("-inf"), dtype=cos.dtype, device=tokens.device).triu_(start + 1)
        h, ks, vs = self.embed(tokens), [], []
        for i, layer in enumerate(self.layers):
            h, k, v = layer(h, cos, sin, mask, past_k[i], past_v[i])
            ks.append(k)
            vs.append(v)
        return self.head(self.norm(h)), torch.stack(ks), torch.stack(vs)


def make():
    torch.manual_seed(303)
    args = ModelArgs()
    model = Transformer(args)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(1 + 0.2 * torch.randn_like(p))
            elif name.endswith(("theta", "phi")):
                p.normal_(0, 0.5)
            elif name.endswith("correction_bias"):
                p.normal_(0, 0.05)
            elif p.dim() == 2 and "embed" not in name:
                p.normal_(0, p.shape[1] ** -0.5)
    tokens = torch.randint(0, args.vocab_size, (2, 12))
    past = [torch.randn(args.n_layers, 2, args.n_kv_heads, 5, args.dim // args.n_heads) for _ in range(2)]
    return model.eval(), (tokens, *past)
