"""ButterflyMoe causal LM in the style of a `modeling_*.py` file: config dataclass, one class per piece, tied embeddings.

Choices: an expert is a small module holding only angles (ParameterList, one per butterfly layer), kept in a ModuleDict;
the shared substrate is an nn.Linear whose weight is ternarised by `torch.nn.utils.parametrize` (per tensor) with a bias.
Shuffle (interleave, an index buffer) BEFORE each rotation (eq. 4); rotation as in GPT-J's rotary code (`rotate_every_two`),
which the attention's RoPE uses too. tanh-GELU AFTER the output rotation. Router: softmax in float32, top-k, renormalise.
Mixtral-style dispatch (one-hot mask, `torch.where`, `index_add_`); since W_down is shared and linear it is applied once
to the gate-weighted sum, its bias thus added once. Widths 48 and 96 padded to 64 and 128.
"""
import math
from dataclasses import dataclass
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize


@dataclass
class ButterflyMoeConfig:
    vocab_size: int = 96
    hidden_size: int = 48
    intermediate_size: int = 96
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    num_local_experts: int = 5
    num_experts_per_tok: int = 2
    butterfly_depth_in: int = 3
    butterfly_depth_out: int = 2
    hidden_act: str = "gelu_pytorch_tanh"
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    norm_topk_prob: bool = True
    mlp_bias: bool = True
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    angle_initializer_range: float = 0.01


ACT2FN = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "linear": lambda x: x,
}


def rotate_every_two(x: torch.Tensor) -> torch.Tensor:
    x1 = x[..., ::2]
    x2 = x[..., 1::2]
    return torch.stack((-x2, x1), dim=-1).flatten(-2)


def apply_rotation(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    cos = angles.cos().repeat_interleave(2, dim=-1)
    sin = angles.sin().repeat_interleave(2, dim=-1)
    return (x * cos) + (rotate_every_two(x) * sin)


class ButterflyMoeRMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


class TernaryParametrization(nn.Module):
    """W -> gamma * clip(round(W / gamma)); straight-through while training."""

    def __init__(self, eps: float = 1e-8):
        super().__init__()
        self.eps = eps

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        gamma = weight.abs().mean()
        quantized = (weight / (gamma + self.eps)).round().clamp(-1, 1) * gamma
        if self.training:
            return weight + (quantized - weight).detach()
        return quantized


class ButterflyMoeTransform(nn.Module):
    def __init__(self, size: int, depth: int):
        super().__init__()
        self.size = size
        self.padded_size = 2 ** math.ceil(math.log2(size))
        self.angles = nn.ParameterList([nn.Parameter(torch.zeros(self.padded_size // 2)) for _ in range(depth)])
        shuffle = torch.arange(self.padded_size).view(2, -1).t().reshape(-1)   # 0, n/2, 1, n/2 + 1, ...
        self.register_buffer("shuffle", shuffle, persistent=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        needs_padding = self.padded_size != self.size
        if needs_padding:
            hidden_states = F.pad(hidden_states, (0, self.padded_size - self.size))
        for angle in self.angles:
            hidden_states = hidden_states.index_select(-1, self.shuffle)
            hidden_states = apply_rotation(hidden_states, angle)
        if needs_padding:
            hidden_states = hidden_states[..., : self.size]
        return hidden_states


class ButterflyMoeExpert(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.rotations = nn.ModuleDict(
            {
                "theta": ButterflyMoeTransform(config.hidden_size, config.butterfly_depth_in),
                "phi": ButterflyMoeTransform(config.intermediate_size, config.butterfly_depth_out),
            }
        )
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor, substrate: nn.Module) -> torch.Tensor:
        hidden_states = self.rotations["theta"](hidden_states)
        hidden_states = substrate(hidden_states)
        hidden_states = self.rotations["phi"](hidden_states)
        return self.act_fn(hidden_states)


class ButterflyMoeSparseMoeBlock(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.num_experts = config.num_local_experts
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.intermediate_size = config.intermediate_size

        self.gate = nn.Linear(config.hidden_size, self.num_experts, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        parametrize.register_parametrization(self.up_proj, "weight", TernaryParametrization())
        self.experts = nn.ModuleDict({f"expert_{i}": ButterflyMoeExpert(config) for i in range(self.num_experts)})

    def forward(self, hidden_states: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.view(-1, hidden_dim)
        router_logits = self.gate(hidden_states)

        routing_weights = F.softmax(router_logits, dim=1, dtype=torch.float)
        routing_weights, selected_experts = torch.topk(routing_weights, self.top_k, dim=-1)
        if self.norm_topk_prob:
            routing_weights /= routing_weights.sum(dim=-1, keepdim=True)
        routing_weights = routing_weights.to(hidden_states.dtype)

        intermediate_states = torch.zeros(
            (batch_size * sequence_length, self.intermediate_size),
            dtype=hidden_states.dtype,
            device=hidden_states.device,
        )
        # one hot encode the selected experts: (num_experts, top_k, tokens)
        expert_mask = F.one_hot(selected_experts, num_classes=self.num_experts).permute(2, 1, 0)

        with parametrize.cached():
            for expert_idx, expert_layer in enumerate(self.experts.values()):
                idx, top_x = torch.where(expert_mask[expert_idx])
                if top_x.numel() == 0:
                    continue
                current_state = hidden_states[None, top_x].reshape(-1, hidden_dim)
                current_states = expert_layer(current_state, self.up_proj) * routing_weights[top_x, idx, None]
                intermediate_states.index_add_(0, top_x, current_states.to(hidden_states.dtype))

        final_hidden_states = self.down_proj(intermediate_states)
        return final_hidden_states.reshape(batch_size, sequence_length, hidden_dim), router_logits


class ButterflyMoeAttention(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, self.num_key_value_heads * self.head_dim, bias=True)
        self.v_proj = nn.Linear(config.hidden_size, self.num_key_value_heads * self.head_dim, bias=True)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor, position_angles: torch.Tensor) -> torch.Tensor:
        bsz, q_len, _ = hidden_states.shape
        query = self.q_proj(hidden_states).view(bsz, q_len, self.num_heads, self.head_dim).transpose(1, 2)
        key = self.k_proj(hidden_states).view(bsz, q_len, self.num_key_value_heads, self.head_dim).transpose(1, 2)
        value = self.v_proj(hidden_states).view(bsz, q_len, self.num_key_value_heads, self.head_dim).transpose(1, 2)

        query = apply_rotation(query, position_angles)
        key = apply_rotation(key, position_angles)
        key = key.repeat_interleave(self.num_key_value_groups, dim=1)
        value = value.repeat_interleave(self.num_key_value_groups, dim=1)

        attn_output = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(attn_output.transpose(1, 2).reshape(bsz, q_len, -1))


class ButterflyMoeDecoderLayer(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.self_attn = ButterflyMoeAttention(config)
        self.block_sparse_moe = ButterflyMoeSparseMoeBlock(config)
        self.input_layernorm = ButterflyMoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = ButterflyMoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, position_angles: torch.Tensor):
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states = residual + self.self_attn(hidden_states, position_angles)

        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states, router_logits = self.block_sparse_moe(hidden_states)
        return residual + hidden_states, router_logits


class ButterflyMoePreTrainedModel(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.config = config

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            weight = module.parametrizations.weight.original if parametrize.is_parametrized(module) else module.weight
            nn.init.normal_(weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ButterflyMoeTransform):
            for angle in module.angles:
                nn.init.normal_(angle, std=self.config.angle_initializer_range)

    def post_init(self):
        self.apply(self._init_weights)


class ButterflyMoeModel(ButterflyMoePreTrainedModel):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([ButterflyMoeDecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = ButterflyMoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        head_dim = config.hidden_size // config.num_attention_heads
        inv_freq = 1.0 / (config.rope_theta ** (torch.arange(0, head_dim, 2).float() / head_dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, input_ids: torch.LongTensor, position_ids: Optional[torch.LongTensor] = None):
        hidden_states = self.embed_tokens(input_ids)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        position_angles = position_ids[:, None].to(hidden_states.dtype) * self.inv_freq
        all_router_logits = ()
        for decoder_layer in self.layers:
            hidden_states, router_logits = decoder_layer(hidden_states, position_angles)
            all_router_logits += (router_logits,)
        return self.norm(hidden_states), all_router_logits


class ButterflyMoeForCausalLM(ButterflyMoePreTrainedModel):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__(config)
        self.model = ButterflyMoeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, input_ids: torch.LongTensor, output_router_logits: bool = False):
        hidden_states, router_logits = self.model(input_ids)
        logits = self.lm_head(hidden_states)
        return (logits, router_logits) if output_router_logits else logits


@torch.no_grad()
def _load_dummy_checkpoint(model: nn.Module):
    """Stand-in for a trained checkpoint."""
    for name, p in model.named_parameters():
        if "angles" in name:
            p.normal_(0.0, 0.5)
        elif "norm" in name:
            p.uniform_(0.5, 1.6)
        elif name.endswith("bias"):
            p.normal_(0.0, 0.2)
        elif "embed" in name:
            p.normal_(0.0, 1.0)
        elif name.endswith("gate.weight"):
            p.normal_(0.0, 0.8 / math.sqrt(p.shape[-1]))
        else:
            p.normal_(0.0, 1.2 / math.sqrt(p.shape[-1]))
    return model


def make():
    torch.manual_seed(1234)
    config = ButterflyMoeConfig()
    model = _load_dummy_checkpoint(ButterflyMoeForCausalLM(config)).eval()
    input_ids = torch.randint(0, config.vocab_size, (2, 20))
    return model, (input_ids,)


if __name__ == "__main__":
    model, inputs = make()
    print(model(*inputs).shape)
