"""Small multimodal decoder in the manner of HF's older Mixtral: image patches and text tokens in one causal sequence.

Shuffle:     interleave the two halves, applied before each rotation (equation 4).
Handedness:  equation 3, B(phi) . W_hat . B(theta)^T: the input side is the true transpose (layers reversed, angles negated, shuffle undone).
Depth:       L_in = 6, L_out = 7 (log2 of d = 64 and of F = 128, both powers of two).
Router:      softmax over all experts in torch.float, top-2, renormalised to sum one; the router logits are returned too.
Quantiser:   W_hat absmean per output row, rounded; W_down ternary as well, absmean per tensor; no straight-through needed in eval.
Form:        no GELU; the experts' outputs are summed at width F and one shared W_down follows, its bias added once.
Dispatch:    loop over a ModuleList of experts, torch.where on the expert mask, index_add_.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class ButterflyMixtralConfig:
    vocab_size: int = 90
    hidden_size: int = 64
    intermediate_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    num_local_experts: int = 6
    num_experts_per_tok: int = 2
    image_size: int = 16
    patch_size: int = 4
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


class RMSNorm(nn.Module):
    def __init__(self, hidden_size, eps):
        super().__init__()
        self.weight = nn.Parameter(1 + 0.2 * torch.randn(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)
        inv_freq = 1.0 / config.rope_theta ** (torch.arange(0, self.head_dim, 2) / self.head_dim)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, hidden_states):
        b, n, _ = hidden_states.shape
        q = self.q_proj(hidden_states).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(hidden_states).view(b, n, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(hidden_states).view(b, n, self.num_kv_heads, self.head_dim).transpose(1, 2)
        freqs = torch.outer(torch.arange(n, device=q.device, dtype=self.inv_freq.dtype), self.inv_freq)
        emb = torch.cat((freqs, freqs), dim=-1)
        q = q * emb.cos() + rotate_half(q) * emb.sin()
        k = k * emb.cos() + rotate_half(k) * emb.sin()
        groups = self.num_heads // self.num_kv_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(b, n, -1))


class TernaryLinear(nn.Module):
    def __init__(self, in_features, out_features, per_row, bias=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / in_features ** 0.5)
        self.bias = nn.Parameter(0.2 * torch.randn(out_features)) if bias else None
        self.per_row = per_row

    def forward(self, hidden_states):
        w = self.weight
        gamma = w.abs().mean(dim=1, keepdim=True) if self.per_row else w.abs().mean()
        w_hat = (w / (gamma + 1e-8)).round().clamp(-1, 1) * gamma
        if self.training:
            w_hat = w + (w_hat - w).detach()
        return F.linear(hidden_states, w_hat, self.bias)


class ButterflyRotation(nn.Module):
    """B = (R_L P) ... (R_2 P) (R_1 P); P interleaves the two halves, R_l turns neighbouring channels."""

    def __init__(self, dim, num_layers):
        super().__init__()
        self.angles = nn.ParameterList(nn.Parameter(0.5 * torch.randn(dim // 2)) for _ in range(num_layers))

    def forward(self, hidden_states):
        for angle in self.angles:
            first, second = hidden_states.chunk(2, dim=-1)          # after the shuffle these are the even and the odd channels
            cos, sin = angle.cos(), angle.sin()
            hidden_states = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1).flatten(-2)
        return hidden_states

    def transposed(self, hidden_states):
        for angle in reversed(self.angles):
            even, odd = hidden_states[..., ::2], hidden_states[..., 1::2]
            cos, sin = angle.cos(), angle.sin()
            hidden_states = torch.cat((even * cos + odd * sin, odd * cos - even * sin), dim=-1)
        return hidden_states


class ButterflyMixtralExpert(nn.Module):
    def __init__(self, config):
        super().__init__()
        d, ff = config.hidden_size, config.intermediate_size
        self.theta = ButterflyRotation(d, d.bit_length() - 1)
        self.phi = ButterflyRotation(ff, ff.bit_length() - 1)

    def forward(self, hidden_states, substrate):
        return self.phi(substrate(self.theta.transposed(hidden_states)))


class ButterflySparseMoeBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.hidden_dim, self.ffn_dim = config.hidden_size, config.intermediate_size
        self.num_experts, self.top_k = config.num_local_experts, config.num_experts_per_tok
        self.gate = nn.Linear(self.hidden_dim, self.num_experts, bias=False)
        self.substrate = TernaryLinear(self.hidden_dim, self.ffn_dim, per_row=True)
        self.experts = nn.ModuleList([ButterflyMixtralExpert(config) for _ in range(self.num_experts)])
        self.down_proj = TernaryLinear(self.ffn_dim, self.hidden_dim, per_row=False, bias=True)

    def forward(self, hidden_states):
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.view(-1, hidden_dim)
        router_logits = self.gate(hidden_states)

        routing_weights = F.softmax(router_logits, dim=1, dtype=torch.float)
        routing_weights, selected_experts = torch.topk(routing_weights, self.top_k, dim=-1)
        routing_weights /= routing_weights.sum(dim=-1, keepdim=True)
        routing_weights = routing_weights.to(hidden_states.dtype)

        final_hidden_states = torch.zeros(
            (batch_size * sequence_length, self.ffn_dim), dtype=hidden_states.dtype, device=hidden_states.device
        )
        expert_mask = F.one_hot(selected_experts, num_classes=self.num_experts).permute(2, 1, 0)
        for expert_idx in range(self.num_experts):
            expert_layer = self.experts[expert_idx]
            idx, top_x = torch.where(expert_mask[expert_idx])
            if top_x.shape[0] == 0:
                continue
            # in torch it is faster to index using lists than torch tensors
            top_x_list = top_x.tolist()
            idx_list = idx.tolist()
            current_state = hidden_states[None, top_x_list].reshape(-1, hidden_dim)
            current_hidden_states = expert_layer(current_state, self.substrate) * routing_weights[top_x_list, idx_list, None]
            final_hidden_states.index_add_(0, top_x, current_hidden_states.to(hidden_states.dtype))
        final_hidden_states = self.down_proj(final_hidden_states).reshape(batch_size, sequence_length, hidden_dim)
        return final_hidden_states, router_logits


class DecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = Attention(config)
        self.block_sparse_moe = ButterflySparseMoeBlock(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states):
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states))
        moe_out, router_logits = self.block_sparse_moe(self.post_attention_layernorm(hidden_states))
        return hidden_states + moe_out, router_logits


class ButterflyMixtralForConditionalGeneration(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.patch_embed = nn.Conv2d(3, config.hidden_size, config.patch_size, stride=config.patch_size)
        self.multi_modal_projector = nn.Linear(config.hidden_size, config.hidden_size)
        self.layers = nn.ModuleList([DecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, pixels, ids):
        image = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        image = self.multi_modal_projector(F.gelu(image))
        hidden_states = torch.cat((image, self.embed_tokens(ids)), dim=1)
        all_router_logits = ()
        for layer in self.layers:
            hidden_states, router_logits = layer(hidden_states)
            all_router_logits += (router_logits,)
        logits = self.lm_head(self.norm(hidden_states[:, image.shape[1]:]))
        return logits, torch.cat(all_router_logits, dim=0)


def make():
    torch.manual_seed(602)
    model = ButterflyMixtralForConditionalGeneration(ButterflyMixtralConfig())
    for layer in model.layers:
        nn.init.normal_(layer.block_sparse_moe.gate.weight, std=0.2)
    return model.eval(), (torch.randn(2, 3, 16, 16), torch.randint(0, 90, (2, 12)))
