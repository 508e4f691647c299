"""Butterfly-MoE causal LM, ported from `modeling_mixtral.py`.

Small decoder-only LM (RoPE attention, RMSNorm) whose MLP is a ButterflyMoE block.
  shuffle     interleave of the two halves, applied BEFORE each rotation (eq. 4)
  handedness  input side B(theta), output side B(phi)^T (reversed layers, inverse shuffle, negated angles)
  depth       L_in = 3, L_out = 2; hidden 48 -> 64 and intermediate 96 -> 128 zero padded once around the stack
  router      linear without bias, softmax over all experts -> top-2 -> renormalised (Mixtral), E = 6
  quantiser   absmean round-clip ternary, one gamma per tensor, straight-through; W_down kept in float
  form        W_down . GELU_tanh( B(phi)^T ( W_hat B(theta) x + b_up ) ) + b_down, activation after the output butterfly
  biases      b_up and b_down shared by all experts, both end up weighted by the routing weight
  dispatch    one_hot expert mask, loop over hit experts, torch.where + index_add_; rotation = GPT-J rotate_every_two
"""
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import nn


class ButterflyMoeConfig:
    model_type = "butterfly_moe"

    def __init__(
        self,
        vocab_size=101,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_local_experts=6,
        num_experts_per_tok=2,
        butterfly_layers_in=3,
        butterfly_layers_out=2,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        initializer_range=0.08,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_local_experts = num_local_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.butterfly_layers_in = butterfly_layers_in
        self.butterfly_layers_out = butterfly_layers_out
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.initializer_range = initializer_range


class ButterflyMoeRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.promote_types(input_dtype, torch.float32))
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


def rotate_half(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def rotate_every_two(x: torch.Tensor) -> torch.Tensor:
    x1 = x[..., ::2]
    x2 = x[..., 1::2]
    return torch.stack((-x2, x1), dim=-1).flatten(-2)


class ButterflyMoeAttention(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=True)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=True)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states, position_embeddings: Tuple[torch.Tensor, torch.Tensor]):
        hidden_shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        k = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        v = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        cos, sin = position_embeddings
        q = q * cos + rotate_half(q) * sin
        k = k * cos + rotate_half(k) * sin
        attn = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(attn.transpose(1, 2).reshape(hidden_states.shape))


class ButterflyMoeSubstrate(nn.Linear):
    """The ternary projection every expert looks at through its own pair of butterflies."""

    def quantized_weight(self):
        gamma = self.weight.abs().mean()
        w_hat = gamma * torch.clamp(torch.round(self.weight / (gamma + 1e-8)), -1, 1)
        return self.weight + (w_hat - self.weight).detach()

    def forward(self, hidden_states):
        return F.linear(hidden_states, self.quantized_weight(), self.bias)


class ButterflyMoeRotation(nn.Module):
    def __init__(self, width: int, num_layers: int, transpose: bool = False):
        super().__init__()
        self.width = width
        self.padded_width = 1 << (width - 1).bit_length()
        self.transpose = transpose
        self.angles = nn.Parameter(torch.zeros(num_layers, self.padded_width // 2))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        n, half = hidden_states.shape[0], self.padded_width // 2
        hidden_states = F.pad(hidden_states, (0, self.padded_width - self.width))
        cos = self.angles.cos().repeat_interleave(2, dim=-1)
        sin = self.angles.sin().repeat_interleave(2, dim=-1)
        if not self.transpose:
            for c, s in zip(cos, sin):
                hidden_states = hidden_states.view(n, 2, half).transpose(1, 2).reshape(n, -1)
                hidden_states = hidden_states * c + rotate_every_two(hidden_states) * s
        else:
            for c, s in zip(cos.flip(0), sin.flip(0)):
                hidden_states = hidden_states * c - rotate_every_two(hidden_states) * s
                hidden_states = hidden_states.view(n, half, 2).transpose(1, 2).reshape(n, -1)
        return hidden_states[:, : self.width]


class ButterflyMoeExpert(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.rot_in = ButterflyMoeRotation(config.hidden_size, config.butterfly_layers_in)
        self.rot_out = ButterflyMoeRotation(config.intermediate_size, config.butterfly_layers_out, transpose=True)

    def forward(self, hidden_states, up_proj: nn.Module, down_proj: nn.Module):
        hidden_states = self.rot_out(up_proj(self.rot_in(hidden_states)))
        return down_proj(F.gelu(hidden_states, approximate="tanh"))


class ButterflyMoeSparseMoeBlock(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.num_experts = config.num_local_experts
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, self.num_experts, bias=False)
        self.up_proj = ButterflyMoeSubstrate(config.hidden_size, config.intermediate_size, bias=True)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=True)
        self.experts = nn.ModuleList([ButterflyMoeExpert(config) for _ in range(self.num_experts)])

    def forward(self, hidden_states: torch.Tensor):
        bsz, seq_len, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.view(-1, hidden_dim)
        router_logits = self.gate(hidden_states)

        routing_weights = F.softmax(router_logits, dim=1, dtype=torch.float)
        routing_weights, selected_experts = torch.topk(routing_weights, self.top_k, dim=-1)
        routing_weights /= routing_weights.sum(dim=-1, keepdim=True)
        routing_weights = routing_weights.to(hidden_states.dtype)

        final_hidden_states = torch.zeros_like(hidden_states)

        # One hot encode the selected experts to create an expert mask
        expert_mask = F.one_hot(selected_experts, num_classes=self.num_experts).permute(2, 1, 0)

        expert_hit = torch.greater(expert_mask.sum(dim=(-1, -2)), 0).nonzero()
        for expert_idx in expert_hit:
            expert_layer = self.experts[expert_idx]
            idx, top_x = torch.where(expert_mask[expert_idx].squeeze(0))
            current_state = hidden_states[None, top_x].reshape(-1, hidden_dim)
            current_hidden_states = expert_layer(current_state, self.up_proj, self.down_proj)
            current_hidden_states = current_hidden_states * routing_weights[top_x, idx, None]
            final_hidden_states.index_add_(0, top_x, current_hidden_states.to(hidden_states.dtype))
        return final_hidden_states.reshape(bsz, seq_len, hidden_dim), router_logits


class ButterflyMoeDecoderLayer(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.self_attn = ButterflyMoeAttention(config)
        self.block_sparse_moe = ButterflyMoeSparseMoeBlock(config)
        self.input_layernorm = ButterflyMoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = ButterflyMoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states, position_embeddings):
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), position_embeddings)
        moe_out, _ = self.block_sparse_moe(self.post_attention_layernorm(hidden_states))
        return hidden_states + moe_out


class ButterflyMoePreTrainedModel(nn.Module):
    config_class = ButterflyMoeConfig

    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.config = config

    def _init_weights(self, module):
        std = self.config.initializer_range
        if isinstance(module, nn.Embedding):
            module.weight.data.normal_(mean=0.0, std=5 * std)
        elif isinstance(module, nn.Linear):
            module.weight.data.normal_(mean=0.0, std=std)
            if getattr(module, "bias", None) is not None:
                module.bias.data.normal_(mean=0.0, std=std)
        elif isinstance(module, ButterflyMoeRMSNorm):
            module.weight.data.normal_(mean=1.0, std=0.2)
        elif isinstance(module, ButterflyMoeRotation):
            module.angles.data.normal_(mean=0.0, std=0.5)
        elif isinstance(module, ButterflyMoeSparseMoeBlock):
            module.gate.weight.data.normal_(mean=0.0, std=0.3)

    def post_init(self):
        self.apply(self._init_weights)


class ButterflyMoeForCausalLM(ButterflyMoePreTrainedModel):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([ButterflyMoeDecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = ButterflyMoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        head_dim = config.hidden_size // config.num_attention_heads
        inv_freq = 1.0 / (config.rope_theta ** (torch.arange(0, head_dim, 2).float() / head_dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.post_init()

    def forward(self, input_ids: torch.LongTensor) -> torch.Tensor:
        hidden_states = self.embed_tokens(input_ids)
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        freqs = position_ids[:, None].to(self.inv_freq.dtype) * self.inv_freq
        emb = torch.cat((freqs, freqs), dim=-1)
        position_embeddings = (emb.cos(), emb.sin())
        for decoder_layer in self.layers:
            hidden_states = decoder_layer(hidden_states, position_embeddings)
        return self.lm_head(self.norm(hidden_states))


def make():
    torch.manual_seed(1234)
    config = ButterflyMoeConfig()
    model = ButterflyMoeForCausalLM(config)
    input_ids = torch.randint(0, config.vocab_size, (2, 20))
    return model.eval(), (input_ids,)
