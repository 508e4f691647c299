"""Causal decoder LM (RMSNorm, rotary, grouped-query attention, tied head) whose MLPs are Butterfly-MoE blocks.

Style of open-source sparse-MoE decoders: softmax over all experts -> top-k -> renormalise, one_hot expert mask,
torch.where per expert, index_add_. Each expert is a small module that holds only angles and a reference to the
shared substrate. Rotations are complex multiplications, as in freqs_cis-type RoPE; the shuffle is the interleaving one
and comes BEFORE the rotation (eq. 4). Both projections are ternary (per-tensor gamma, autograd.Function STE), no
biases, tanh GELU before B(phi).
"""
from dataclasses import dataclass
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class ButterflyMoeConfig:
    vocab_size: int = 101
    hidden_size: int = 64
    intermediate_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    butterfly_depth_in: int = 6
    butterfly_depth_out: int = 4
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6


class _TernarySTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: torch.Tensor) -> torch.Tensor:
        scale = weight.abs().mean()
        return (weight / (scale + 1e-8)).round().clamp(-1, 1) * scale

    @staticmethod
    def backward(ctx, grad_output: torch.Tensor) -> torch.Tensor:
        return grad_output


class BitLinear(nn.Linear):
    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, _TernarySTE.apply(self.weight))


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


# ----------------------------------------------------------------------------- experts


def apply_butterfly(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """x: (tokens, n), angles: (depth, n // 2)"""
    n = x.shape[-1]
    cis = torch.polar(torch.ones_like(angles), angles)
    for layer_cis in cis:
        x = x.view(-1, 2, n // 2).transpose(1, 2).reshape(-1, n // 2, 2)  # perfect shuffle, already as pairs
        x = torch.view_as_real(torch.view_as_complex(x.contiguous()) * layer_cis).flatten(-2)
    return x


class ButterflyExpert(nn.Module):
    def __init__(self, config: ButterflyMoeConfig, up_proj: BitLinear, down_proj: BitLinear):
        super().__init__()
        self.up_proj = up_proj  # shared
        self.down_proj = down_proj  # shared
        self.theta = nn.Parameter(torch.randn(config.butterfly_depth_in, config.hidden_size // 2) * 0.01)
        self.phi = nn.Parameter(torch.randn(config.butterfly_depth_out, config.intermediate_size // 2) * 0.01)
        self.act_fn = nn.GELU(approximate="tanh")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        current = self.act_fn(self.up_proj(apply_butterfly(hidden_states, self.theta)))
        return self.down_proj(apply_butterfly(current, self.phi))


class ButterflySparseMoeBlock(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.num_experts = config.num_local_experts
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, self.num_experts, bias=False)
        up = BitLinear(config.hidden_size, config.intermediate_size)
        down = BitLinear(config.intermediate_size, config.hidden_size)
        self.experts = nn.ModuleList([ButterflyExpert(config, up, down) for _ in range(self.num_experts)])

    def forward(self, hidden_states: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.view(-1, hidden_dim)
        router_logits = self.gate(hidden_states)

        routing_weights = F.softmax(router_logits, dim=1)
        routing_weights, selected_experts = torch.topk(routing_weights, self.top_k, dim=-1)
        routing_weights /= routing_weights.sum(dim=-1, keepdim=True)

        final_hidden_states = torch.zeros(
            (batch_size * sequence_length, hidden_dim), dtype=hidden_states.dtype, device=hidden_states.device
        )
        expert_mask = F.one_hot(selected_experts, num_classes=self.num_experts).permute(2, 1, 0)
        for expert_idx, expert_layer in enumerate(self.experts):
            idx, top_x = torch.where(expert_mask[expert_idx])
            if top_x.shape[0] == 0:
                continue
            current_state = hidden_states[None, top_x].reshape(-1, hidden_dim)
            current_hidden_states = expert_layer(current_state) * routing_weights[top_x, idx, None]
            final_hidden_states.index_add_(0, top_x, current_hidden_states.to(hidden_states.dtype))
        return final_hidden_states.reshape(batch_size, sequence_length, hidden_dim), router_logits


# --------------------------------------------------------------------------- attention


def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


class RotaryEmbedding(nn.Module):
    def __init__(self, dim: int, base: float):
        super().__init__()
        inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, x, position_ids):
        freqs = position_ids[:, :, None].to(x.dtype) * self.inv_freq.to(x.dtype)
        emb = torch.cat((freqs, freqs), dim=-1)
        return emb.cos(), emb.sin()


class CausalAttention(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv = config.num_key_value_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.num_kv * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.num_kv * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, hidden_states, position_embeddings):
        bsz, q_len, _ = hidden_states.shape
        q = self.q_proj(hidden_states).view(bsz, q_len, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(hidden_states).view(bsz, q_len, self.num_kv, self.head_dim).transpose(1, 2)
        v = self.v_proj(hidden_states).view(bsz, q_len, self.num_kv, self.head_dim).transpose(1, 2)
        cos, sin = (t.unsqueeze(1) for t in position_embeddings)
        q = q * cos + rotate_half(q) * sin
        k = k * cos + rotate_half(k) * sin
        groups = self.num_heads // self.num_kv
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(bsz, q_len, -1))


class DecoderLayer(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.self_attn = CausalAttention(config)
        self.block_sparse_moe = ButterflySparseMoeBlock(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states, position_embeddings):
        residual = hidden_states
        hidden_states = self.self_attn(self.input_layernorm(hidden_states), position_embeddings)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states, router_logits = self.block_sparse_moe(self.post_attention_layernorm(hidden_states))
        return residual + hidden_states, router_logits


class ButterflyMoeForCausalLM(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([DecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config.hidden_size // config.num_attention_heads, config.rope_theta)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids: torch.LongTensor, position_ids: Optional[torch.LongTensor] = None):
        hidden_states = self.embed_tokens(input_ids)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for layer in self.layers:
            hidden_states, _ = layer(hidden_states, position_embeddings)
        return self.lm_head(self.norm(hidden_states))


def make():
    torch.manual_seed(1234)
    model = ButterflyMoeForCausalLM(ButterflyMoeConfig())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("theta", "phi")):
                p.normal_(0.0, 0.5)
            elif "norm" in name:
                p.uniform_(0.6, 1.5)
            elif name.endswith("gate.weight"):
                p.normal_(0.0, 0.25)
            elif "embed_tokens" in name:
                p.normal_(0.0, 0.4)
            else:
                p.normal_(0.0, 1.0 / p.shape[1] ** 0.5)
    input_ids = torch.randint(0, model.config.vocab_size, (2, 24))
    return model.eval(), (input_ids,)
