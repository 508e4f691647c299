"""Butterfly-MoE token classifier, written the way a `transformers` contributor would (GPT-OSS experts block as the template).

shuffle     deinterleave (evens, then odds) after every rotation (Algorithm 1)
handedness  forward rotation (x1 c - x2 s, x1 s + x2 c) on both sides, no transposes
L           6 on the input side (48 -> 64 padded), 4 on the output side (96 -> 128 padded); padding once around all layers
router      linear with bias, top-2 logits then softmax over the two
quantiser   W_hat: gamma = mean|W| per tensor, round_clip; W_down in full precision
biases      up bias in front of the GELU (erf), down bias weighted by the gate; both shared by all experts
form        ButterflyViT Algorithm 2
dispatch    all experts on all tokens, `repeat(num_experts, 1)` + scattered routing weights
"""
import math
from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn
import torch.nn.functional as F


class ButterflyMoeConfig:
    model_type = "butterfly_moe"

    def __init__(
        self,
        vocab_size=97,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=6,
        num_experts_per_tok=2,
        butterfly_depth_in=6,
        butterfly_depth_out=4,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        initializer_range=0.08,
        num_labels=9,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.num_local_experts = num_local_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.butterfly_depth_in = butterfly_depth_in
        self.butterfly_depth_out = butterfly_depth_out
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.num_labels = num_labels
        for k, v in kwargs.items():
            setattr(self, k, v)


@dataclass
class MoeModelOutput:
    last_hidden_state: torch.Tensor
    router_logits: Optional[tuple] = None


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def apply_butterfly(hidden_states: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """hidden_states: (num_experts, tokens, dim); angles: (num_experts, depth, padded_dim // 2)"""
    dim = hidden_states.shape[-1]
    padded = 2 * angles.shape[-1]
    if padded != dim:
        hidden_states = F.pad(hidden_states, (0, padded - dim))
    cos, sin = angles.cos(), angles.sin()
    for depth in range(angles.shape[1]):
        c, s = cos[:, depth].unsqueeze(1), sin[:, depth].unsqueeze(1)
        x1, x2 = hidden_states[..., ::2], hidden_states[..., 1::2]
        hidden_states = torch.stack((x1 * c - x2 * s, x2 * c + x1 * s), dim=-1).flatten(-2)
        hidden_states = torch.cat((hidden_states[..., ::2], hidden_states[..., 1::2]), dim=-1)
    return hidden_states[..., :dim]


def ternarize(weight: torch.Tensor) -> torch.Tensor:
    gamma = weight.abs().mean()
    quantized = gamma * torch.clamp(torch.round(weight / (gamma + 1e-8)), -1, 1)
    return weight + (quantized - weight).detach()


class ButterflyMoeRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


class ButterflyMoeExperts(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_experts = config.num_local_experts
        self.hidden_size = config.hidden_size
        self.expert_dim = config.intermediate_size
        d2, f2 = next_power_of_2(self.hidden_size) // 2, next_power_of_2(self.expert_dim) // 2
        self.up_proj = nn.Parameter(torch.empty(self.expert_dim, self.hidden_size))
        self.up_proj_bias = nn.Parameter(torch.empty(self.expert_dim))
        self.down_proj = nn.Parameter(torch.empty(self.hidden_size, self.expert_dim))
        self.down_proj_bias = nn.Parameter(torch.empty(self.hidden_size))
        self.input_angles = nn.Parameter(torch.empty(self.num_experts, config.butterfly_depth_in, d2))
        self.output_angles = nn.Parameter(torch.empty(self.num_experts, config.butterfly_depth_out, f2))

    def forward(self, hidden_states, routing_weights):
        batch_size = hidden_states.shape[0]
        hidden_states = hidden_states.reshape(-1, self.hidden_size)
        hidden_states = hidden_states.repeat(self.num_experts, 1).view(self.num_experts, -1, self.hidden_size)
        hidden_states = apply_butterfly(hidden_states, self.input_angles)
        hidden_states = F.gelu(F.linear(hidden_states, ternarize(self.up_proj), self.up_proj_bias))
        hidden_states = apply_butterfly(hidden_states, self.output_angles)
        next_states = F.linear(hidden_states, self.down_proj, self.down_proj_bias)
        next_states = next_states.view(self.num_experts, batch_size, -1, self.hidden_size)
        next_states = next_states * routing_weights.transpose(0, 1).view(self.num_experts, batch_size, -1)[..., None]
        return next_states.sum(dim=0)


class ButterflyMoeTopKRouter(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.hidden_dim = config.hidden_size
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, self.hidden_dim))
        self.bias = nn.Parameter(torch.empty(config.num_local_experts))

    def forward(self, hidden_states):
        hidden_states = hidden_states.reshape(-1, self.hidden_dim)
        router_logits = F.linear(hidden_states, self.weight, self.bias)
        router_top_value, router_indices = torch.topk(router_logits, self.top_k, dim=-1)
        router_top_value = F.softmax(router_top_value, dim=1, dtype=router_top_value.dtype)
        router_scores = torch.zeros_like(router_logits).scatter_(1, router_indices, router_top_value)
        return router_scores, router_logits


class ButterflyMoeMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.router = ButterflyMoeTopKRouter(config)
        self.experts = ButterflyMoeExperts(config)

    def forward(self, hidden_states):
        router_scores, router_logits = self.router(hidden_states)
        return self.experts(hidden_states, routing_weights=router_scores), router_logits


class ButterflyMoeAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        kv_dim = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, kv_dim)
        self.v_proj = nn.Linear(config.hidden_size, kv_dim)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states):
        hidden_shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        k = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        v = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        k = k.repeat_interleave(self.num_key_value_groups, dim=1)
        v = v.repeat_interleave(self.num_key_value_groups, dim=1)
        attn_weights = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(self.head_dim)
        attn_output = torch.matmul(F.softmax(attn_weights, dim=-1), v).transpose(1, 2).contiguous()
        return self.o_proj(attn_output.reshape(*hidden_states.shape))


class ButterflyMoeLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = ButterflyMoeAttention(config)
        self.mlp = ButterflyMoeMLP(config)
        self.input_layernorm = ButterflyMoeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = ButterflyMoeRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states):
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states))
        mlp_out, router_logits = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + mlp_out, router_logits


class ButterflyMoeModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList([ButterflyMoeLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = ButterflyMoeRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids):
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden_states = self.embed_tokens(input_ids) + self.embed_positions(position_ids)
        all_router_logits = ()
        for layer in self.layers:
            hidden_states, router_logits = layer(hidden_states)
            all_router_logits += (router_logits,)
        return MoeModelOutput(self.norm(hidden_states), all_router_logits)


class ButterflyMoeForTokenClassification(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = ButterflyMoeModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self._init_weights()

    @torch.no_grad()
    def _init_weights(self):
        std = self.config.initializer_range
        for name, p in self.named_parameters():
            if "angles" in name:
                p.normal_(0, 0.5)
            elif "norm" in name:
                p.uniform_(0.7, 1.3)
            elif "router" in name or "embed" in name:
                p.normal_(0, 4 * std)
            else:
                p.normal_(0, 2 * std)

    def forward(self, input_ids):
        return self.score(self.model(input_ids).last_hidden_state)


def make():
    torch.manual_seed(20)
    model = ButterflyMoeForTokenClassification(ButterflyMoeConfig())
    input_ids = torch.randint(0, 97, (2, 18))
    return model.eval(), (input_ids,)
