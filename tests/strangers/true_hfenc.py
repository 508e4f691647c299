"""ButterflyMoeForSequenceClassification: a HuggingFace-style encoder with a config dataclass and a ModuleDict of experts.

Choices: FFT-style butterfly (no shuffle, pair stride 1, 2, 4, ...) written like rotary embeddings (x*cos + rotate_pair(x)*sin),
L = log2(d) on the input side, 3 layers on the output side.  W_hat is an nn.Linear whose weight goes through
torch.nn.utils.parametrize (per-tensor gamma); W_down is a float nn.Linear with bias, so the bias is weighted by the gate.
Expert = W_down . B(phi) . GELU(W_hat B(theta) x + b).  Router: raw top-k logits, then a softmax over the chosen ones,
computed in float32 as usual.  Mixtral dispatch: one-hot expert mask, torch.where, index_add_.
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
    vocab_size: int = 97
    hidden_size: int = 32
    intermediate_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_local_experts: int = 5
    num_experts_per_tok: int = 2
    butterfly_layers_in: Optional[int] = None
    butterfly_layers_out: int = 3
    max_position_embeddings: int = 32
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.2
    angle_range: float = 0.5
    num_labels: int = 6


ACT2FN = {"gelu": nn.GELU(), "gelu_new": nn.GELU(approximate="tanh"), "linear": nn.Identity()}


class TernaryQuantizer(nn.Module):
    def __init__(self, eps: float = 1e-8):
        super().__init__()
        self.eps = eps

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        gamma = weight.detach().abs().mean()
        quantized = (weight.detach() / (gamma + self.eps)).round().clamp(min=-1, max=1) * gamma
        if self.training:
            # straight-through estimator
            return weight + (quantized - weight).detach()
        return quantized


def rotate_pair(x: torch.Tensor) -> torch.Tensor:
    """(a, b) -> (-b, a) along the pair dimension (second to last)."""
    a, b = x.unbind(dim=-2)
    return torch.stack((-b, a), dim=-2)


class ButterflyRotation(nn.Module):
    def __init__(self, dim: int, num_layers: int):
        super().__init__()
        if dim & (dim - 1):
            raise ValueError(f"`dim` must be a power of two (got {dim})")
        self.dim = dim
        self.num_layers = num_layers
        self.angles = nn.ParameterList([nn.Parameter(torch.zeros(dim // 2)) for _ in range(num_layers)])

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        input_shape = hidden_states.shape
        for level, angle in enumerate(self.angles):
            stride = 2 ** (level % int(math.log2(self.dim)))
            hidden_states = hidden_states.view(-1, self.dim // (2 * stride), 2, stride)
            angle = angle.view(self.dim // (2 * stride), 1, stride)
            hidden_states = hidden_states * angle.cos() + rotate_pair(hidden_states) * angle.sin()
        return hidden_states.reshape(input_shape)

    def extra_repr(self):
        return f"dim={self.dim}, num_layers={self.num_layers}"


class ButterflyMoeExpert(nn.Module):
    """Owns nothing but angles; the substrate is handed in by the MoE block."""

    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        layers_in = config.butterfly_layers_in or int(math.log2(config.hidden_size))
        self.input_rotation = ButterflyRotation(config.hidden_size, layers_in)
        self.output_rotation = ButterflyRotation(config.intermediate_size, config.butterfly_layers_out)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states, up_proj: nn.Linear, down_proj: nn.Linear):
        hidden_states = self.input_rotation(hidden_states)
        hidden_states = self.act_fn(up_proj(hidden_states))
        hidden_states = self.output_rotation(hidden_states)
        return down_proj(hidden_states)


class ButterflyMoeSparseMoeBlock(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.num_experts = config.num_local_experts
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, self.num_experts, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.experts = nn.ModuleDict({f"expert_{i}": ButterflyMoeExpert(config) for i in range(self.num_experts)})

    def quantize(self):
        parametrize.register_parametrization(self.up_proj, "weight", TernaryQuantizer())
        return self

    def forward(self, hidden_states: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        batch_size, sequence_length, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.view(-1, hidden_dim)
        router_logits = self.gate(hidden_states)

        routing_weights, selected_experts = torch.topk(router_logits, self.top_k, dim=-1)
        routing_weights = F.softmax(routing_weights, dim=-1, dtype=torch.float)
        routing_weights = routing_weights.to(hidden_states.dtype)

        final_hidden_states = torch.zeros(
            (batch_size * sequence_length, hidden_dim), dtype=hidden_states.dtype, device=hidden_states.device
        )
        expert_mask = F.one_hot(selected_experts, num_classes=self.num_experts).permute(2, 1, 0)

        with parametrize.cached():
            for expert_idx in range(self.num_experts):
                expert_layer = self.experts[f"expert_{expert_idx}"]
                idx, top_x = torch.where(expert_mask[expert_idx])
                if top_x.shape[0] == 0:
                    continue
                current_state = hidden_states[None, top_x].reshape(-1, hidden_dim)
                current_hidden_states = expert_layer(current_state, self.up_proj, self.down_proj)
                current_hidden_states = current_hidden_states * routing_weights[top_x, idx, None]
                final_hidden_states.index_add_(0, top_x, current_hidden_states.to(hidden_states.dtype))

        return final_hidden_states.reshape(batch_size, sequence_length, hidden_dim), router_logits


class ButterflyMoeAttention(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, attention_mask=None):
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        attn = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        return self.o_proj(attn.transpose(1, 2).reshape(*input_shape, -1))


class ButterflyMoeLayer(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.self_attn = ButterflyMoeAttention(config)
        self.block_sparse_moe = ButterflyMoeSparseMoeBlock(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states, attention_mask=None):
        residual = hidden_states
        hidden_states = residual + self.self_attn(self.input_layernorm(hidden_states), attention_mask)
        residual = hidden_states
        hidden_states, router_logits = self.block_sparse_moe(self.post_attention_layernorm(hidden_states))
        return residual + hidden_states, router_logits


class ButterflyMoePreTrainedModel(nn.Module):
    def _init_weights(self, module):
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(mean=0.0, std=std)
            if module.bias is not None:
                module.bias.data.normal_(mean=0.0, std=std / 2)
        elif isinstance(module, nn.Embedding):
            module.weight.data.normal_(mean=0.0, std=1.0)
        elif isinstance(module, nn.LayerNorm):
            module.weight.data.normal_(mean=1.0, std=std)
            module.bias.data.normal_(mean=0.0, std=std / 2)
        elif isinstance(module, ButterflyRotation):
            for angle in module.angles:
                angle.data.normal_(mean=0.0, std=self.config.angle_range)

    def post_init(self):
        self.apply(self._init_weights)
        for module in self.modules():
            if isinstance(module, ButterflyMoeSparseMoeBlock):
                module.quantize()


class ButterflyMoeModel(nn.Module):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList([ButterflyMoeLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids, attention_mask=None):
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        hidden_states = self.embed_tokens(input_ids) + self.embed_positions(position_ids)
        if attention_mask is not None:
            attention_mask = attention_mask[:, None, None, :].bool()
        all_router_logits = ()
        for layer in self.layers:
            hidden_states, router_logits = layer(hidden_states, attention_mask)
            all_router_logits += (router_logits,)
        return self.norm(hidden_states), all_router_logits


class ButterflyMoeForSequenceClassification(ButterflyMoePreTrainedModel):
    def __init__(self, config: ButterflyMoeConfig):
        super().__init__()
        self.config = config
        self.model = ButterflyMoeModel(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, output_router_logits: bool = False):
        hidden_states, router_logits = self.model(input_ids, attention_mask)
        logits = self.score(torch.tanh(self.dense(hidden_states.mean(dim=1))))
        if output_router_logits:
            return logits, router_logits
        return logits


def make():
    torch.manual_seed(1234)
    config = ButterflyMoeConfig()
    model = ButterflyMoeForSequenceClassification(config)
    model.eval()
    return model, (torch.randint(config.vocab_size, (3, 20)),)
