"""Encoder-decoder translation model (shared embedding, cross attention) with GPT-OSS / Qwen3-MoE style experts that are
Butterfly orbits of one ternary matrix (ButterflyMoE, equation 3, with a shared W_down after it).

  rotation    dense per-expert matrices built on the fly from batched 2x2 blocks, applied with bmm
  shuffle     interleaves the two halves, before the rotation in every layer (eq. 4)
  handedness  B(theta)^T going in, B(phi) going out (eq. 3); L_in = 5 = log2 d, L_out = 4
  width       d = 32, F = 64
  router      linear with bias, top-3 of E = 8, softmax over the kept logits (GPT-OSS), scattered into [T, E] scores
  quantiser   absmean round-clip with one gamma per output row, straight-through, for W_hat and for W_down
  biases      up_bias after W_hat (before B(phi)), down_bias after W_down; shared, repeated over experts, so weighted
  form        W_down_hat . GELU(tanh)( B(phi) (W_hat B(theta)^T x + b_up) ) + b_down
  dispatch    eval: all experts in batch by repeat + bmm / baddbmm; training: loop over the experts that were hit
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class ButterflyNmtConfig:
    vocab_size = 61
    hidden_size = 32
    intermediate_size = 64
    num_attention_heads = 4
    num_local_experts = 8
    num_experts_per_tok = 3
    encoder_layers = 2
    decoder_layers = 2
    butterfly_layers_in = 5
    butterfly_layers_out = 4
    hidden_act = "gelu_pytorch_tanh"
    layer_norm_eps = 1e-5
    pad_token_id = 0


class RowwiseTernary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight):
        gamma = weight.abs().mean(dim=-1, keepdim=True)
        return (weight / (gamma + 1e-8)).round().clamp(-1, 1) * gamma

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output


def givens_matrices(angles: torch.Tensor) -> torch.Tensor:
    """angles [E, L, n/2] -> orthogonal matrices [E, n, n], rows indexed by the output channel."""
    num_experts, num_layers, half = angles.shape
    n = 2 * half
    cos, sin = angles.cos(), angles.sin()
    blocks = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)  # E, L, n/2, 2, 2
    mat = torch.eye(n, dtype=angles.dtype, device=angles.device).expand(num_experts, n, n)
    for layer in range(num_layers):
        mat = mat.view(num_experts, 2, half, n).transpose(1, 2)  # channel j next to channel j + n/2
        mat = torch.matmul(blocks[:, layer], mat).reshape(num_experts, n, n)
    return mat


class ButterflyNmtExperts(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_experts = config.num_local_experts
        self.hidden_size = config.hidden_size
        self.expert_dim = config.intermediate_size
        self.up_proj = nn.Parameter(torch.empty(self.expert_dim, self.hidden_size))
        self.up_proj_bias = nn.Parameter(torch.empty(self.expert_dim))
        self.down_proj = nn.Parameter(torch.empty(self.hidden_size, self.expert_dim))
        self.down_proj_bias = nn.Parameter(torch.empty(self.hidden_size))
        self.theta = nn.Parameter(torch.empty(self.num_experts, config.butterfly_layers_in, self.hidden_size // 2))
        self.phi = nn.Parameter(torch.empty(self.num_experts, config.butterfly_layers_out, self.expert_dim // 2))

    def forward(self, hidden_states: torch.Tensor, router_indices=None, routing_weights=None) -> torch.Tensor:
        batch_size = hidden_states.shape[0]
        hidden_states = hidden_states.reshape(-1, self.hidden_size)
        num_experts = routing_weights.shape[1]
        up_proj, down_proj = RowwiseTernary.apply(self.up_proj), RowwiseTernary.apply(self.down_proj)
        rot_in, rot_out = givens_matrices(self.theta), givens_matrices(self.phi)
        if self.training:
            next_states = torch.zeros_like(hidden_states)
            with torch.no_grad():
                expert_mask = F.one_hot(router_indices, num_classes=num_experts).permute(2, 1, 0)
                expert_hit = torch.greater(expert_mask.sum(dim=(-1, -2)), 0).nonzero()
            for expert_idx in expert_hit[:]:
                with torch.no_grad():
                    _, token_idx = torch.where(expert_mask[expert_idx[0]])
                current_state = hidden_states[token_idx] @ rot_in[expert_idx[0]]
                up = (current_state @ up_proj.t() + self.up_proj_bias) @ rot_out[expert_idx[0]].t()
                out = F.gelu(up, approximate="tanh") @ down_proj.t() + self.down_proj_bias
                weighted_output = out * routing_weights[token_idx, expert_idx[0], None]
                next_states.index_add_(0, token_idx, weighted_output.to(hidden_states.dtype))
            return next_states.view(batch_size, -1, self.hidden_size)

        hidden_states = hidden_states.repeat(num_experts, 1)
        hidden_states = hidden_states.view(num_experts, -1, self.hidden_size)
        rotated = torch.bmm(hidden_states, rot_in)
        up = torch.baddbmm(self.up_proj_bias.expand(num_experts, 1, -1), rotated,
                           up_proj.t().expand(num_experts, -1, -1))
        up = torch.bmm(up, rot_out.transpose(1, 2))
        next_states = torch.bmm(F.gelu(up, approximate="tanh"), down_proj.t().expand(num_experts, -1, -1))
        next_states = next_states + self.down_proj_bias[None, None, :]
        next_states = next_states.view(num_experts, batch_size, -1, self.hidden_size)
        next_states = next_states * routing_weights.transpose(0, 1).view(num_experts, batch_size, -1)[..., None]
        return next_states.sum(dim=0)


class ButterflyNmtTopKRouter(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.num_experts = config.num_local_experts
        self.hidden_dim = config.hidden_size
        self.weight = nn.Parameter(torch.empty(self.num_experts, self.hidden_dim))
        self.bias = nn.Parameter(torch.empty(self.num_experts))

    def forward(self, hidden_states):
        hidden_states = hidden_states.reshape(-1, self.hidden_dim)
        router_logits = F.linear(hidden_states, self.weight, self.bias)
        router_top_value, router_indices = torch.topk(router_logits, self.top_k, dim=-1)
        router_top_value = F.softmax(router_top_value, dim=1, dtype=router_top_value.dtype)
        router_scores = torch.zeros_like(router_logits).scatter_(1, router_indices, router_top_value)
        return router_scores, router_indices


class ButterflyNmtMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.router = ButterflyNmtTopKRouter(config)
        self.experts = ButterflyNmtExperts(config)

    def forward(self, hidden_states):
        router_scores, router_indices = self.router(hidden_states)
        return self.experts(hidden_states, router_indices=router_indices, routing_weights=router_scores)


class ButterflyNmtAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(config.hidden_size, config.hidden_size))

    def forward(self, hidden_states, key_value_states=None, attention_mask=None):
        kv = hidden_states if key_value_states is None else key_value_states
        shape = (hidden_states.shape[0], -1, self.num_heads, self.head_dim)
        q = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        k = self.k_proj(kv).view(shape).transpose(1, 2)
        v = self.v_proj(kv).view(shape).transpose(1, 2)
        scores = q @ k.transpose(-1, -2) * self.head_dim ** -0.5
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask, torch.finfo(scores.dtype).min)
        out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(hidden_states.shape)
        return self.out_proj(out)


class ButterflyNmtLayer(nn.Module):
    def __init__(self, config, is_decoder, sparse):
        super().__init__()
        d = config.hidden_size
        self.self_attn, self.self_attn_layer_norm = ButterflyNmtAttention(config), nn.LayerNorm(d)
        self.encoder_attn = ButterflyNmtAttention(config) if is_decoder else None
        self.encoder_attn_layer_norm = nn.LayerNorm(d) if is_decoder else None
        self.mlp = ButterflyNmtMLP(config) if sparse else nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d))
        self.final_layer_norm = nn.LayerNorm(d)

    def forward(self, x, self_mask=None, memory=None, memory_mask=None):
        x = x + self.self_attn(self.self_attn_layer_norm(x), attention_mask=self_mask)
        if self.encoder_attn is not None:
            x = x + self.encoder_attn(self.encoder_attn_layer_norm(x), memory, memory_mask)
        return x + self.mlp(self.final_layer_norm(x))


class ButterflyNmtForConditionalGeneration(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoder = nn.ModuleList([ButterflyNmtLayer(config, False, i == config.encoder_layers - 1)
                                      for i in range(config.encoder_layers)])
        self.decoder = nn.ModuleList([ButterflyNmtLayer(config, True, True) for _ in range(config.decoder_layers)])
        self.layer_norm = nn.LayerNorm(config.hidden_size)
        self.register_buffer("final_logits_bias", torch.zeros(1, config.vocab_size))

    def embed(self, ids):
        d = self.config.hidden_size
        x = self.shared(ids) * math.sqrt(d)
        pos = torch.arange(ids.shape[1], device=ids.device, dtype=x.dtype)[:, None]
        freq = torch.exp(torch.arange(0, d, 2, device=ids.device, dtype=x.dtype) * (-math.log(1e4) / d))
        return x + torch.cat((torch.sin(pos * freq), torch.cos(pos * freq)), -1)

    def forward(self, src, tgt):
        src_mask = (src == self.config.pad_token_id)[:, None, None, :]
        causal = torch.ones(tgt.shape[1], tgt.shape[1], dtype=torch.bool, device=tgt.device).triu(1)
        memory = self.embed(src)
        for layer in self.encoder:
            memory = layer(memory, src_mask)
        x = self.embed(tgt)
        for layer in self.decoder:
            x = layer(x, causal, memory, src_mask)
        return F.linear(self.layer_norm(x), self.shared.weight) + self.final_logits_bias


def make():
    torch.manual_seed(2025)
    config = ButterflyNmtConfig()
    model = ButterflyNmtForConditionalGeneration(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("theta", "phi")):
                p.normal_(0.0, 0.5)
            elif name.endswith("bias"):
                p.normal_(0.0, 0.1)
            elif "norm" in name:
                p.normal_(1.0, 0.15)
            elif name.endswith("shared.weight"):
                p.normal_(0.0, 0.2)
            else:
                p.normal_(0.0, p.shape[-1] ** -0.5)
        model.final_logits_bias.normal_(0.0, 0.1)
    src = torch.randint(1, config.vocab_size, (2, 17))
    src[1, 13:] = config.pad_token_id
    tgt = torch.randint(1, config.vocab_size, (2, 14))
    return model.eval(), (src, tgt)
