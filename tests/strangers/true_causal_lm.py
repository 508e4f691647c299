"""Decoder-only LM with a ButterflyMoE FFN, laid out like the usual open-source MoE decoders.

RMSNorm, rotary, grouped-query causal SDPA, tied lm_head. Router: fp32 softmax over all experts -> top-k -> renormalise.
Dispatch: flatten tokens, one_hot(expert ids).permute(2, 1, 0), torch.where per expert, index_add_ into the result.
Rotations are FFT style: no shuffle, the pair stride doubles each layer (1, 2, 4, ...), written with view/unbind/stack and
cos/sin computed once for all experts. Rotation is the transposed Givens (c, s; -s, c). W_hat per output row gamma, tanh GELU,
W_hat and down_proj both without bias, down_proj in full precision. Angles: one [experts, layers, width/2] parameter per side.
"""
import math
from dataclasses import dataclass
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class ButterflyMoeConfig:
    vocab_size: int = 97
    hidden_size: int = 32
    intermediate_size: int = 64
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    butterfly_layers_in: int = 5
    butterfly_layers_out: int = 6
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


class RotaryEmbedding(nn.Module):
    def __init__(self, dim: int, base: float):
        super().__init__()
        inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, x, position_ids) -> Tuple[torch.Tensor, torch.Tensor]:
        freqs = position_ids[:, :, None].to(self.inv_freq.dtype) * self.inv_freq[None, None, :]
        emb = torch.cat((freqs, freqs), dim=-1)
        return emb.cos().to(x.dtype), emb.sin().to(x.dtype)


def rotate_half(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2:]
    return torch.cat((-x2, x1), dim=-1)


def apply_rotary_pos_emb(q, k, cos, sin):
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin


class Attention(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, hidden_states, position_embeddings):
        bsz, q_len, _ = hidden_states.size()
        q = self.q_proj(hidden_states).view(bsz, q_len, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(hidden_states).view(bsz, q_len, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(hidden_states).view(bsz, q_len, self.num_kv_heads, self.head_dim).transpose(1, 2)
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        n_rep = self.num_heads // self.num_kv_heads
        k = k.repeat_interleave(n_rep, dim=1)
        v = v.repeat_interleave(n_rep, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(bsz, q_len, -1))


def butterfly_rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x: [tokens, n]; cos/sin: [layers, n/2]."""
    n = x.shape[-1]
    for layer in range(cos.shape[0]):
        stride = 1 << layer
        x = x.view(-1, n // (2 * stride), 2, stride)
        c = cos[layer].view(-1, stride)
        s = sin[layer].view(-1, stride)
        lo, hi = x.unbind(dim=2)
        x = torch.stack((lo * c + hi * s, hi * c - lo * s), dim=2).reshape(-1, n)
    return x


class ButterflyExperts(nn.Module):
    """All experts of one layer: shared ternary up_proj, shared down_proj, private angles."""

    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        d, f, e = config.hidden_size, config.intermediate_size, config.num_local_experts
        self.up_proj = nn.Parameter(torch.empty(f, d))
        self.down_proj = nn.Linear(f, d, bias=False)
        self.theta = nn.Parameter(torch.empty(e, config.butterfly_layers_in, d // 2))
        self.phi = nn.Parameter(torch.empty(e, config.butterfly_layers_out, f // 2))

    def ternary_weight(self):
        w = self.up_proj
        scale = w.abs().mean(dim=1, keepdim=True)
        q = (w / (scale + 1e-8)).round().clamp_(-1, 1) * scale
        if self.training:
            q = w + (q - w).detach()
        return q


class ButterflySparseMoeBlock(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.num_experts = config.num_local_experts
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, self.num_experts, bias=False)
        self.experts = ButterflyExperts(config)

    def forward(self, hidden_states: torch.Tensor):
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.view(-1, hidden_dim)
        router_logits = self.gate(hidden_states)

        routing_weights = F.softmax(router_logits, dim=1, dtype=torch.float)
        routing_weights, selected_experts = torch.topk(routing_weights, self.top_k, dim=-1)
        routing_weights /= routing_weights.sum(dim=-1, keepdim=True)
        routing_weights = routing_weights.to(hidden_states.dtype)

        final_hidden_states = torch.zeros(
            (batch_size * sequence_length, hidden_dim), dtype=hidden_states.dtype, device=hidden_states.device
        )
        expert_mask = F.one_hot(selected_experts, num_classes=self.num_experts).permute(2, 1, 0)

        w_up = self.experts.ternary_weight()
        cos_in, sin_in = self.experts.theta.cos(), self.experts.theta.sin()
        cos_out, sin_out = self.experts.phi.cos(), self.experts.phi.sin()
        for expert_idx in range(self.num_experts):
            idx, top_x = torch.where(expert_mask[expert_idx])
            if top_x.shape[0] == 0:
                continue
            current_state = hidden_states[None, top_x].reshape(-1, hidden_dim)
            h = butterfly_rotate(current_state, cos_in[expert_idx], sin_in[expert_idx])
            h = F.gelu(F.linear(h, w_up), approximate="tanh")
            h = butterfly_rotate(h, cos_out[expert_idx], sin_out[expert_idx])
            current_hidden_states = self.experts.down_proj(h) * routing_weights[top_x, idx, None]
            final_hidden_states.index_add_(0, top_x, current_hidden_states.to(hidden_states.dtype))
        return final_hidden_states.reshape(batch_size, sequence_length, hidden_dim), router_logits


class DecoderLayer(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.block_sparse_moe = ButterflySparseMoeBlock(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states, position_embeddings):
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states = residual + self.self_attn(hidden_states, position_embeddings)
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states, router_logits = self.block_sparse_moe(hidden_states)
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


@torch.no_grad()
def load_fake_checkpoint(model: nn.Module, seed: int):
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=g)
        if p.dim() == 1:
            p.copy_(1.0 + 0.3 * noise)
        elif name.endswith((".theta", ".phi")):
            p.copy_(0.5 * noise)
        elif name.endswith("gate.weight"):
            p.copy_(0.35 * noise)
        elif name == "embed_tokens.weight":
            p.copy_(0.6 * noise)
        else:
            p.copy_(noise * (1.3 / math.sqrt(p.shape[-1])))


def make():
    torch.manual_seed(0)
    config = ButterflyMoeConfig()
    model = ButterflyMoeForCausalLM(config)
    load_fake_checkpoint(model, seed=1234)
    input_ids = torch.randint(0, config.vocab_size, (2, 24))
    return model.eval(), (input_ids,)
