"""Decoder-only LM with butterfly experts, written like a transformers `modeling_*.py` file.

shuffle    : deinterleave (evens first, then odds), applied after each Givens stage
handedness : plain B(theta) on the way in and plain B(phi) on the way out
depth      : L_in = 6 on the padded width 64, L_out = 4 on the padded width 128
router     : sigmoid scores, top-2, scores used as they are (no renormalisation), no router bias
quantiser  : mean-|W| absmean, one gamma for the tensor, round + clamp, straight-through
biases     : b_up after W_hat, b_down after W_down, both weighted by the gate
form       : W_down . B(phi) . GELU_erf(W_hat . B(theta) x), W_down float
width      : hidden 48 padded to 64, intermediate 96 padded to 128 (pad once, strip once)
dispatch   : argsort by expert id, bincount -> torch.split into slabs, index_add_ back
"""
from dataclasses import dataclass

import torch
from torch import nn
import torch.nn.functional as F


@dataclass
class ButterflyLMConfig:
    vocab_size: int = 61
    hidden_size: int = 48
    intermediate_size: int = 96
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    butterfly_layers_in: int = 6
    butterfly_layers_out: int = 4
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.08


def next_pow2(n: int) -> int:
    return 1 << (n - 1).bit_length()


class ButterflyLMRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


class ButterflyLMAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv = config.num_key_value_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, self.num_kv * self.head_dim, bias=True)
        self.v_proj = nn.Linear(config.hidden_size, self.num_kv * self.head_dim, bias=True)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, hidden_states, cos, sin):
        bsz, q_len, _ = hidden_states.shape
        q = self.q_proj(hidden_states).view(bsz, q_len, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(hidden_states).view(bsz, q_len, self.num_kv, self.head_dim).transpose(1, 2)
        v = self.v_proj(hidden_states).view(bsz, q_len, self.num_kv, self.head_dim).transpose(1, 2)
        q = q * cos + rotate_half(q) * sin
        k = k * cos + rotate_half(k) * sin
        rep = self.num_heads // self.num_kv
        k = k.repeat_interleave(rep, dim=1)
        v = v.repeat_interleave(rep, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(bsz, q_len, -1))


def butterfly_rotate(hidden_states, angles):
    """hidden_states [n, width], angles [layers, padded // 2]."""
    width = hidden_states.shape[-1]
    padded = 2 * angles.shape[-1]
    if padded != width:
        hidden_states = F.pad(hidden_states, (0, padded - width))
    for layer_angles in angles:
        cos, sin = layer_angles.cos(), layer_angles.sin()
        even, odd = hidden_states[..., 0::2], hidden_states[..., 1::2]
        even, odd = cos * even - sin * odd, sin * even + cos * odd
        # the perfect shuffle sends evens to the first half, so no re-interleave is needed
        hidden_states = torch.cat((even, odd), dim=-1)
    return hidden_states[..., :width]


class ButterflyLMSparseMoeBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        d, f, e = config.hidden_size, config.intermediate_size, config.num_local_experts
        self.num_experts = e
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(d, e, bias=False)
        self.up_weight = nn.Parameter(torch.empty(f, d))
        self.up_bias = nn.Parameter(torch.empty(f))
        self.down_proj = nn.Linear(f, d, bias=True)
        self.theta = nn.Parameter(torch.empty(e, config.butterfly_layers_in, next_pow2(d) // 2))
        self.phi = nn.Parameter(torch.empty(e, config.butterfly_layers_out, next_pow2(f) // 2))

    def ternary_weight(self):
        w = self.up_weight
        gamma = w.abs().mean()
        w_hat = gamma * torch.clamp(torch.round(w / (gamma + 1e-8)), -1, 1)
        return w + (w_hat - w).detach()

    def expert_forward(self, slab, expert_idx, w_hat):
        slab = butterfly_rotate(slab, self.theta[expert_idx])
        slab = F.gelu(F.linear(slab, w_hat, self.up_bias))
        slab = butterfly_rotate(slab, self.phi[expert_idx])
        return self.down_proj(slab)

    def forward(self, hidden_states):
        bsz, seq_len, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.view(-1, hidden_dim)
        scores = torch.sigmoid(self.gate(hidden_states))
        routing_weights, selected_experts = torch.topk(scores, self.top_k, dim=-1)

        flat_experts = selected_experts.view(-1)
        order = flat_experts.argsort(stable=True)
        counts = torch.bincount(flat_experts, minlength=self.num_experts).tolist()
        token_idx = order // self.top_k
        slabs = torch.split(hidden_states[token_idx], counts, dim=0)

        w_hat = self.ternary_weight()
        outputs = []
        for expert_idx, slab in enumerate(slabs):
            if slab.shape[0] == 0:
                continue
            outputs.append(self.expert_forward(slab, expert_idx, w_hat))
        outputs = torch.cat(outputs, dim=0) * routing_weights.view(-1)[order].unsqueeze(-1)

        final = torch.zeros_like(hidden_states)
        final.index_add_(0, token_idx, outputs)
        return final.view(bsz, seq_len, hidden_dim)


class ButterflyLMDecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = ButterflyLMAttention(config)
        self.block_sparse_moe = ButterflyLMSparseMoeBlock(config)
        self.input_layernorm = ButterflyLMRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = ButterflyLMRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states, cos, sin):
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), cos, sin)
        return hidden_states + self.block_sparse_moe(self.post_attention_layernorm(hidden_states))


class ButterflyLMForCausalLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([ButterflyLMDecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = ButterflyLMRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        head_dim = config.hidden_size // config.num_attention_heads
        inv_freq = 1.0 / config.rope_theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.apply_init()

    @torch.no_grad()
    def apply_init(self):
        for name, p in self.named_parameters():
            leaf = name.split(".")[-1]
            if leaf in ("theta", "phi"):
                p.normal_(0.0, 0.5)
            elif "norm" in name:
                p.uniform_(0.6, 1.4)
            elif "bias" in leaf:
                p.normal_(0.0, 0.1)
            elif name.endswith("gate.weight"):
                p.normal_(0.0, 0.3)
            elif name == "embed_tokens.weight":
                p.normal_(0.0, 1.0)
            else:
                p.normal_(0.0, self.config.initializer_range * 1.5)

    def forward(self, input_ids):
        hidden_states = self.embed_tokens(input_ids)
        pos = torch.arange(input_ids.shape[1], device=input_ids.device, dtype=self.inv_freq.dtype)
        freqs = torch.outer(pos, self.inv_freq)
        emb = torch.cat((freqs, freqs), dim=-1)
        cos, sin = emb.cos(), emb.sin()
        for layer in self.layers:
            hidden_states = layer(hidden_states, cos, sin)
        return self.lm_head(self.norm(hidden_states))


def make():
    torch.manual_seed(1234)
    config = ButterflyLMConfig()
    model = ButterflyLMForCausalLM(config)
    input_ids = torch.randint(0, config.vocab_size, (2, 20))
    return model.eval(), (input_ids,)
