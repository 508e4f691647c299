"""ButterMixtral: a small decoder-only language model, Mixtral modelling code with the experts swapped for butterfly experts.

form        ButterflyViT Algorithm 2: W_down . B(phi_i) . GELU(W_hat . B(theta_i) x)
rotation    pairs (2j, 2j+1), [c -s; s c], unbind/stack, forward handedness on both sides
shuffle     interleave the two halves, after each rotation
L           3 on the input side, 4 on the output side
router      linear without bias, softmax over all experts, top-2, renormalised
quantiser   round/clip with one gamma for the tensor, straight-through; W_down stays float
biases      up bias (shared, before GELU) and down bias (shared, so it is weighted by the gate)
dispatch    one_hot + permute + where + index_add_ over nn.ModuleList; each expert refers to the one shared nn.Linear pair
"""
import math
from typing import Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F


class ButterMixtralConfig:
    def __init__(self, vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
                 num_attention_heads=4, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2,
                 butterfly_in_layers=3, butterfly_out_layers=4, rms_norm_eps=1e-5, rope_theta=1e4):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.num_local_experts = num_local_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.butterfly_in_layers = butterfly_in_layers
        self.butterfly_out_layers = butterfly_out_layers
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta


class ButterMixtralRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


def rotate_half(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2:]
    return torch.cat((-x2, x1), dim=-1)


def repeat_kv(hidden_states, n_rep):
    b, h, s, d = hidden_states.shape
    return hidden_states[:, :, None].expand(b, h, n_rep, s, d).reshape(b, h * n_rep, s, d)


class ButterMixtralAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv = config.num_key_value_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.num_kv * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.num_kv * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, hidden_states, position_embeddings, attention_mask):
        bsz, q_len, _ = hidden_states.shape
        q = self.q_proj(hidden_states).view(bsz, q_len, -1, self.head_dim).transpose(1, 2)
        k = self.k_proj(hidden_states).view(bsz, q_len, -1, self.head_dim).transpose(1, 2)
        v = self.v_proj(hidden_states).view(bsz, q_len, -1, self.head_dim).transpose(1, 2)
        cos, sin = position_embeddings
        q = q * cos + rotate_half(q) * sin
        k = k * cos + rotate_half(k) * sin
        k = repeat_kv(k, self.num_heads // self.num_kv)
        v = repeat_kv(v, self.num_heads // self.num_kv)
        attn_weights = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(self.head_dim) + attention_mask
        attn_weights = F.softmax(attn_weights, dim=-1)
        out = torch.matmul(attn_weights, v).transpose(1, 2).reshape(bsz, q_len, -1)
        return self.o_proj(out)


def ternary_weight(weight: torch.Tensor) -> torch.Tensor:
    gamma = weight.abs().mean()
    q = torch.clamp(torch.round(weight / (gamma + 1e-8)), -1, 1) * gamma
    return weight + (q - weight).detach()


class ButterflyRotation(nn.Module):
    def __init__(self, width: int, num_layers: int):
        super().__init__()
        self.width = width
        self.angles = nn.Parameter(torch.empty(num_layers, width // 2))
        nn.init.normal_(self.angles, std=0.5)

    def forward(self, hidden_states):
        for angle in self.angles:
            cos, sin = angle.cos(), angle.sin()
            even, odd = hidden_states.unflatten(-1, (-1, 2)).unbind(-1)
            hidden_states = torch.stack((cos * even - sin * odd, sin * even + cos * odd), dim=-1).flatten(-2)
            first, second = hidden_states.chunk(2, dim=-1)
            hidden_states = torch.stack((first, second), dim=-1).flatten(-2)
        return hidden_states


class ButterMixtralExpert(nn.Module):
    """Holds its angles; the two projections belong to the sparse block."""

    def __init__(self, config, w1: nn.Linear, w2: nn.Linear):
        super().__init__()
        self.w1 = w1
        self.w2 = w2
        self.rot_in = ButterflyRotation(config.hidden_size, config.butterfly_in_layers)
        self.rot_out = ButterflyRotation(config.intermediate_size, config.butterfly_out_layers)
        self.act_fn = nn.GELU()

    def forward(self, hidden_states):
        current = F.linear(self.rot_in(hidden_states), ternary_weight(self.w1.weight), self.w1.bias)
        current = self.rot_out(self.act_fn(current))
        return self.w2(current)


class ButterMixtralSparseMoeBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.hidden_dim = config.hidden_size
        self.num_experts = config.num_local_experts
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(self.hidden_dim, self.num_experts, bias=False)
        w1 = nn.Linear(config.hidden_size, config.intermediate_size)
        w2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.experts = nn.ModuleList([ButterMixtralExpert(config, w1, w2) for _ in range(self.num_experts)])

    def forward(self, hidden_states: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.view(-1, hidden_dim)
        router_logits = self.gate(hidden_states)
        routing_weights = F.softmax(router_logits, dim=1)
        routing_weights, selected_experts = torch.topk(routing_weights, self.top_k, dim=-1)
        routing_weights /= routing_weights.sum(dim=-1, keepdim=True)
        routing_weights = routing_weights.to(hidden_states.dtype)

        final_hidden_states = torch.zeros((batch_size * sequence_length, hidden_dim),
                                          dtype=hidden_states.dtype, device=hidden_states.device)
        expert_mask = F.one_hot(selected_experts, num_classes=self.num_experts).permute(2, 1, 0)
        for expert_idx in range(self.num_experts):
            expert_layer = self.experts[expert_idx]
            idx, top_x = torch.where(expert_mask[expert_idx])
            current_state = hidden_states[None, top_x].reshape(-1, hidden_dim)
            current_hidden_states = expert_layer(current_state) * routing_weights[top_x, idx, None]
            final_hidden_states.index_add_(0, top_x, current_hidden_states.to(hidden_states.dtype))
        final_hidden_states = final_hidden_states.reshape(batch_size, sequence_length, hidden_dim)
        return final_hidden_states, router_logits


class ButterMixtralDecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = ButterMixtralAttention(config)
        self.block_sparse_moe = ButterMixtralSparseMoeBlock(config)
        self.input_layernorm = ButterMixtralRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = ButterMixtralRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states, position_embeddings, attention_mask):
        residual = hidden_states
        hidden_states = self.self_attn(self.input_layernorm(hidden_states), position_embeddings, attention_mask)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states, _ = self.block_sparse_moe(self.post_attention_layernorm(hidden_states))
        return residual + hidden_states


class ButterMixtralForCausalLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([ButterMixtralDecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = ButterMixtralRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        dim = config.hidden_size // config.num_attention_heads
        self.register_buffer("inv_freq", 1.0 / config.rope_theta ** (torch.arange(0, dim, 2) / dim), persistent=False)

    def forward(self, input_ids: torch.LongTensor, position_ids: Optional[torch.LongTensor] = None):
        hidden_states = self.embed_tokens(input_ids)
        q_len = input_ids.shape[1]
        if position_ids is None:
            position_ids = torch.arange(q_len, device=input_ids.device)
        freqs = torch.outer(position_ids.to(self.inv_freq.dtype), self.inv_freq)
        emb = torch.cat((freqs, freqs), dim=-1)
        min_dtype = torch.finfo(hidden_states.dtype).min
        mask = torch.full((q_len, q_len), min_dtype, dtype=hidden_states.dtype, device=input_ids.device).triu(1)
        for layer in self.layers:
            hidden_states = layer(hidden_states, (emb.cos(), emb.sin()), mask)
        return self.lm_head(self.norm(hidden_states))


def make():
    torch.manual_seed(4711)
    model = ButterMixtralForCausalLM(ButterMixtralConfig())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("norm.weight"):
                p.copy_(1 + 0.2 * torch.randn_like(p))
            elif name.endswith("bias"):
                p.normal_(0, 0.2)
            elif name.endswith("gate.weight"):
                p.normal_(0, 0.4)
            elif name.endswith("w1.weight"):
                p.normal_(0, 0.15)
    return model.eval(), (torch.randint(0, 97, (2, 24)),)
