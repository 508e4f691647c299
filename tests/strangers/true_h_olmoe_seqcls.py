"""OLMoE / Qwen2-MoE modelling code turned into a bidirectional encoder for sequence classification, FFN = butterfly experts.

Form       W_down . B(phi_i) . GELU( W_hat . B(theta_i) x ), erf GELU, no biases in the experts; W_down float and shared.
Rotation   GPT-J style "rotate every two" on pairs (2j, 2j+1), then the deinterleave shuffle (evens first, odds second).
           Forward rotation on both sides. L_in = 6 (all of log2 64), L_out = 3.
Width      hidden 48 -> zero-padded to 64, intermediate 96 -> zero-padded to 128, stripped once after the last layer.
Quantiser  round_clip with gamma = mean|W| of the tensor, straight-through by detach.
Router     softmax over all 8 experts in float, top-2, no renormalisation (norm_topk_prob=False, as in OLMoE).
Dispatch   HF expert mask: one_hot(selected).permute(2, 1, 0), loop over experts, torch.where + index_add_.
Returns    class logits and the router logits of all layers (for the load-balancing loss).
"""
from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class ButterflyOlmoeConfig:
    vocab_size: int = 120
    hidden_size: int = 48
    intermediate_size: int = 96
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_experts: int = 8
    num_experts_per_tok: int = 2
    norm_topk_prob: bool = False
    in_butterfly_layers: int = 6
    out_butterfly_layers: int = 3
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    num_labels: int = 5
    pad_token_id: int = 0
    initializer_range: float = 0.15


class ButterflyOlmoeRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


def rotate_every_two(x):
    x1 = x[..., ::2]
    x2 = x[..., 1::2]
    return torch.stack((-x2, x1), dim=-1).flatten(-2)


def next_power_of_two(n):
    return 1 << (n - 1).bit_length()


def apply_butterfly(hidden_states, angles):
    """angles: (num_layers, padded_width // 2)"""
    width = hidden_states.shape[-1]
    hidden_states = F.pad(hidden_states, (0, 2 * angles.shape[-1] - width))
    cos = angles.cos().repeat_interleave(2, dim=-1)
    sin = angles.sin().repeat_interleave(2, dim=-1)
    for layer_cos, layer_sin in zip(cos, sin):
        hidden_states = hidden_states * layer_cos + rotate_every_two(hidden_states) * layer_sin
        hidden_states = torch.cat((hidden_states[..., ::2], hidden_states[..., 1::2]), dim=-1)
    return hidden_states[..., :width]


def ternarize(weight):
    gamma = weight.abs().mean()
    quantized = (weight / (gamma + 1e-8)).round().clamp(-1, 1) * gamma
    return weight + (quantized - weight).detach()


class ButterflyOlmoeExpert(nn.Module):
    def __init__(self, config):
        super().__init__()
        d_in = next_power_of_two(config.hidden_size) // 2
        d_out = next_power_of_two(config.intermediate_size) // 2
        self.theta = nn.Parameter(torch.zeros(config.in_butterfly_layers, d_in))
        self.phi = nn.Parameter(torch.zeros(config.out_butterfly_layers, d_out))
        self.act_fn = nn.GELU()

    def forward(self, hidden_states, up_weight, down_proj):
        hidden_states = apply_butterfly(hidden_states, self.theta)
        hidden_states = self.act_fn(F.linear(hidden_states, up_weight))
        return down_proj(apply_butterfly(hidden_states, self.phi))


class ButterflyOlmoeSparseMoeBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_experts = config.num_experts
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.gate = nn.Linear(config.hidden_size, self.num_experts, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.experts = nn.ModuleList([ButterflyOlmoeExpert(config) for _ in range(self.num_experts)])

    def forward(self, hidden_states):
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.view(-1, hidden_dim)
        router_logits = self.gate(hidden_states)

        routing_weights = F.softmax(router_logits, dim=-1)
        routing_weights, selected_experts = torch.topk(routing_weights, self.top_k, dim=-1)
        if self.norm_topk_prob:
            routing_weights = routing_weights / routing_weights.sum(dim=-1, keepdim=True)
        routing_weights = routing_weights.to(hidden_states.dtype)

        final_hidden_states = torch.zeros_like(hidden_states)
        expert_mask = F.one_hot(selected_experts, num_classes=self.num_experts).permute(2, 1, 0)
        up_weight = ternarize(self.up_proj.weight)

        for expert_idx in range(self.num_experts):
            expert_layer = self.experts[expert_idx]
            idx, top_x = torch.where(expert_mask[expert_idx])
            current_state = hidden_states[None, top_x].reshape(-1, hidden_dim)
            current_hidden_states = expert_layer(current_state, up_weight, self.down_proj)
            current_hidden_states = current_hidden_states * routing_weights[top_x, idx, None]
            final_hidden_states.index_add_(0, top_x, current_hidden_states.to(hidden_states.dtype))
        return final_hidden_states.reshape(batch_size, sequence_length, hidden_dim), router_logits


class ButterflyOlmoeAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=True)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=True)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.q_norm = ButterflyOlmoeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.k_norm = ButterflyOlmoeRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states, attention_mask, cos, sin):
        bsz, q_len, hidden = hidden_states.shape
        shape = (bsz, q_len, self.num_heads, self.head_dim)
        q = self.q_norm(self.q_proj(hidden_states)).view(shape).transpose(1, 2)
        k = self.k_norm(self.k_proj(hidden_states)).view(shape).transpose(1, 2)
        v = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        q = q * cos + rotate_half(q) * sin
        k = k * cos + rotate_half(k) * sin
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)
        return self.o_proj(out.transpose(1, 2).reshape(bsz, q_len, hidden))


class ButterflyOlmoeLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = ButterflyOlmoeAttention(config)
        self.mlp = ButterflyOlmoeSparseMoeBlock(config)
        self.input_layernorm = ButterflyOlmoeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = ButterflyOlmoeRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states, attention_mask, cos, sin):
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), attention_mask, cos, sin)
        mlp_out, router_logits = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + mlp_out, router_logits


class ButterflyOlmoeForSequenceClassification(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.layers = nn.ModuleList([ButterflyOlmoeLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = ButterflyOlmoeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        head_dim = config.hidden_size // config.num_attention_heads
        inv_freq = 1.0 / (config.rope_theta ** (torch.arange(0, head_dim, 2).float() / head_dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(0.0, std)
            if module.bias is not None:
                module.bias.data.normal_(0.0, std)
        elif isinstance(module, nn.Embedding):
            module.weight.data.normal_(0.0, 1.0)
        elif isinstance(module, ButterflyOlmoeRMSNorm):
            module.weight.data.uniform_(0.7, 1.3)
        elif isinstance(module, ButterflyOlmoeExpert):
            module.theta.data.normal_(0.0, 0.5)
            module.phi.data.normal_(0.0, 0.5)

    def forward(self, input_ids, attention_mask: Optional[torch.Tensor] = None):
        if attention_mask is None:
            attention_mask = input_ids.ne(self.config.pad_token_id)
        hidden_states = self.embed_tokens(input_ids)
        position = torch.arange(input_ids.shape[1], device=input_ids.device).to(hidden_states.dtype)
        freqs = torch.outer(position, self.inv_freq)
        emb = torch.cat((freqs, freqs), dim=-1)
        extended_mask = attention_mask.bool()[:, None, None, :]
        all_router_logits = ()
        for layer in self.layers:
            hidden_states, router_logits = layer(hidden_states, extended_mask, emb.cos(), emb.sin())
            all_router_logits += (router_logits,)
        hidden_states = self.norm(hidden_states)
        keep = attention_mask.to(hidden_states.dtype).unsqueeze(-1)
        pooled = (hidden_states * keep).sum(1) / keep.sum(1)
        return self.score(pooled), torch.stack(all_router_logits)


def make():
    torch.manual_seed(2024)
    model = ButterflyOlmoeForSequenceClassification(ButterflyOlmoeConfig())
    for layer in model.layers:
        layer.mlp.gate.weight.data.normal_(0.0, 0.3)
    input_ids = torch.randint(1, 120, (2, 22))
    attention_mask = torch.ones(2, 22, dtype=torch.long)
    input_ids[1, 17:] = 0
    attention_mask[1, 17:] = 0
    return model.eval(), (input_ids, attention_mask)
