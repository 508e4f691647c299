"""
GPT with Megatron-style MoE layers ([s, b, h] activations, permute -> grouped GEMM by counts -> unpermute).

Butterfly experts, ButterflyViT Algorithm 2: fc2 . B(phi)^T . gelu(fc1 . B(theta) x + b1)
 - shuffle: none; stride-doubling pairs (distance 1, 2, 4, ...), full depth: L_in = log2 64 = 6, L_out = log2 128 = 7
 - handedness: B(theta) as it is on the input side, the transpose of B(phi) on the output side
 - rotations are materialised as dense [E, n, n] matrices and applied by gmm(a, b, counts, trans_b)
 - ffn width 96 is zero-padded to 128 around all layers of B(phi) and stripped after
 - router: softmax over all experts, then top-3 of 6, not renormalised; switch-type aux loss is returned
 - quantiser: round/clip with one gamma per output row, for fc1 and fc2 both
 - biases: b1 before gelu (tanh), b2 returned apart and added once after the combine (skip_bias_add)
"""
import math
from dataclasses import dataclass
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import Parameter


@dataclass
class TransformerConfig:
    num_layers: int = 3
    hidden_size: int = 64
    ffn_hidden_size: int = 96
    num_attention_heads: int = 4
    vocab_size: int = 101
    max_position_embeddings: int = 32
    num_moe_experts: int = 6
    moe_router_topk: int = 3
    moe_aux_loss_coeff: float = 1e-2
    layernorm_epsilon: float = 1e-5
    init_method_std: float = 0.15


def bias_gelu(bias: Tensor, y: Tensor) -> Tensor:
    x = bias + y
    return x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))


def permute(tokens: Tensor, indices: Tensor) -> Tuple[Tensor, Tensor]:
    topk = indices.size(1)
    sorted_indices = torch.argsort(indices.reshape(-1), stable=True)
    return tokens.index_select(0, sorted_indices // topk), sorted_indices


def unpermute(permuted_tokens: Tensor, sorted_indices: Tensor, probs: Tensor) -> Tensor:
    restored = torch.zeros_like(permuted_tokens)
    restored.index_copy_(0, sorted_indices, permuted_tokens)
    restored = restored.reshape(-1, probs.size(1), permuted_tokens.size(-1))
    return (restored * probs.unsqueeze(-1)).sum(dim=1)


def gmm(a: Tensor, b: Tensor, batch_sizes: Tensor, trans_b: bool = False) -> Tensor:
    out, start = [], 0
    for i, size in enumerate(batch_sizes.tolist()):
        rhs = b[i].t() if trans_b else b[i]
        out.append(a[start:start + size] @ rhs)
        start += size
    return torch.cat(out)


class TernaryWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight):
        gamma = weight.abs().mean(dim=1, keepdim=True)
        return torch.clamp(torch.round(weight / (gamma + 1e-8)), -1, 1) * gamma

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output


class ExpertRotation(nn.Module):
    """[E, n, n] orthogonal matrices as a product of log2(n) sparse Givens factors."""

    def __init__(self, num_experts: int, size: int):
        super().__init__()
        self.size = size
        self.padded = 1 << (size - 1).bit_length()
        self.levels = int(math.log2(self.padded))
        self.angles = Parameter(torch.empty(num_experts, self.levels, self.padded // 2).normal_(0, 0.5))

    def materialize(self) -> Tensor:
        n = self.padded
        eye = torch.eye(n, dtype=self.angles.dtype, device=self.angles.device)
        mat = eye.expand(self.angles.size(0), n, n)          # [E, rows, cols], factors multiply from the left
        for level in range(self.levels):
            stride = 1 << level
            ang = self.angles[:, level].reshape(-1, n // (2 * stride), stride, 1)
            c, s = torch.cos(ang), torch.sin(ang)
            blocks = mat.reshape(-1, n // (2 * stride), 2, stride, n)
            lo, hi = blocks[:, :, 0], blocks[:, :, 1]
            mat = torch.stack((c * lo - s * hi, s * lo + c * hi), dim=2).reshape(-1, n, n)
        return mat

    def forward(self, x: Tensor, tokens_per_expert: Tensor, transpose: bool = False) -> Tensor:
        x = F.pad(x, (0, self.padded - self.size))
        x = gmm(x, self.materialize(), tokens_per_expert, trans_b=not transpose)
        return x[:, :self.size]


class GroupedButterflyMLP(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        h, f, e = config.hidden_size, config.ffn_hidden_size, config.num_moe_experts
        self.weight1 = Parameter(torch.empty(f, h).normal_(0, config.init_method_std))
        self.bias1 = Parameter(torch.empty(f).normal_(0, 0.2))
        self.weight2 = Parameter(torch.empty(h, f).normal_(0, config.init_method_std))
        self.bias2 = Parameter(torch.empty(h).normal_(0, 0.1))
        self.rotation1 = ExpertRotation(e, h)
        self.rotation2 = ExpertRotation(e, f)

    def forward(self, permuted: Tensor, tokens_per_expert: Tensor) -> Tuple[Tensor, Tensor]:
        x = self.rotation1(permuted, tokens_per_expert)
        x = torch.matmul(x, TernaryWeight.apply(self.weight1).t())
        x = bias_gelu(self.bias1, x)
        x = self.rotation2(x, tokens_per_expert, transpose=True)
        x = torch.matmul(x, TernaryWeight.apply(self.weight2).t())
        return x, self.bias2


class TopKRouter(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.weight = Parameter(torch.empty(config.num_moe_experts, config.hidden_size).normal_(0, 0.2))

    def forward(self, hidden: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        scores = torch.softmax(F.linear(hidden, self.weight), dim=-1)
        probs, indices = torch.topk(scores, k=self.config.moe_router_topk, dim=-1)
        counts = torch.bincount(indices.reshape(-1), minlength=self.config.num_moe_experts)
        frac = counts.to(scores.dtype) / indices.numel()
        aux = self.config.moe_aux_loss_coeff * self.config.num_moe_experts * (frac * scores.mean(0)).sum()
        return probs, indices, aux


class MoELayer(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.router = TopKRouter(config)
        self.experts = GroupedButterflyMLP(config)

    def forward(self, hidden_states: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        shape = hidden_states.shape
        tokens = hidden_states.reshape(-1, shape[-1])
        probs, indices, aux = self.router(tokens)
        tokens_per_expert = torch.bincount(indices.reshape(-1), minlength=self.config.num_moe_experts)
        permuted, sorted_indices = permute(tokens, indices)
        expert_output, bias = self.experts(permuted, tokens_per_expert)
        output = unpermute(expert_output, sorted_indices, probs)
        return output.view(shape), bias, aux


class SelfAttention(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.np = config.num_attention_heads
        self.hn = config.hidden_size // self.np
        self.linear_qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.linear_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        s, b, h = x.shape
        mixed = self.linear_qkv(x).view(s, b, self.np, 3 * self.hn)
        q, k, v = (t.permute(1, 2, 0, 3) for t in mixed.split(self.hn, dim=-1))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.hn)
        mask = torch.ones(s, s, dtype=torch.bool, device=x.device).triu(1)
        ctx = torch.matmul(scores.masked_fill(mask, -10000.0).softmax(-1), v)
        return self.linear_proj(ctx.permute(2, 0, 1, 3).reshape(s, b, h))


class TransformerLayer(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.self_attention = SelfAttention(config)
        self.pre_mlp_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = MoELayer(config)

    def forward(self, hidden_states: Tensor) -> Tuple[Tensor, Tensor]:
        hidden_states = hidden_states + self.self_attention(self.input_layernorm(hidden_states))
        mlp_output, mlp_bias, aux = self.mlp(self.pre_mlp_layernorm(hidden_states))
        return hidden_states + (mlp_output + mlp_bias), aux


class GPTModel(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList([TransformerLayer(config) for _ in range(config.num_layers)])
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)

    def forward(self, input_ids: Tensor, position_ids: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        if position_ids is None:
            position_ids = torch.arange(input_ids.size(1), device=input_ids.device).expand_as(input_ids)
        x = (self.word_embeddings(input_ids) + self.position_embeddings(position_ids)).transpose(0, 1).contiguous()
        total_aux = x.new_zeros(())
        for layer in self.layers:
            x, aux = layer(x)
            total_aux = total_aux + aux
        logits = torch.matmul(self.final_layernorm(x), self.word_embeddings.weight.t())
        return logits.transpose(0, 1).contiguous(), total_aux


def make():
    torch.manual_seed(40)
    model = GPTModel(TransformerConfig())
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, 0.0, 0.1)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.bias, 0.0, 0.1)
    return model.eval(), (torch.randint(0, 101, (2, 20)),)
