"""Vision transformer for small images; MoE plumbing carried over from Llama-4 text code, butterfly experts inside.

  * form       : W_down . B(phi_i)^T . GELU(W_hat . B(theta_i)^T (s_i x)), exact GELU, float W_down
  * rotation   : batched 2x2 matrices per (expert, layer, pair), einsum
  * shuffle    : deinterleave BEFORE the rotation, hence the transposes rotate back and then interleave
  * handedness : transposed on both sides;  L = 2 in, 3 out
  * width      : d = 40 padded to 64, F = 80 padded to 128, stripped after the last layer
  * router     : top-1 of 4, sigmoid of the logit, biased linear
  * quantiser  : absmean round, gamma per output row, straight-through only while training
  * biases     : none ahead of GELU, one on the output, added once;  dispatch: every expert on every (scaled) token, sum

NOT a Butterfly layer of the papers: as in Llama-4 the score multiplies the expert's INPUT and not its output; GELU is not
homogeneous, so  expert(s x) != s expert(x).
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class ButterflyViTConfig:
    def __init__(self, image_size=24, patch_size=4, num_channels=3, hidden_size=40, intermediate_size=80,
                 num_hidden_layers=3, num_attention_heads=5, num_local_experts=4, num_experts_per_tok=1,
                 rotation_layers=(2, 3), moe_layers=(0, 2), num_labels=10, layer_norm_eps=1e-6):
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_channels = num_channels
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_local_experts = num_local_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.rotation_layers = rotation_layers
        self.moe_layers = moe_layers
        self.num_labels = num_labels
        self.layer_norm_eps = layer_norm_eps


class ButterflyViTRouter(nn.Linear):
    def __init__(self, config):
        super().__init__(config.hidden_size, config.num_local_experts, bias=True)
        self.top_k = config.num_experts_per_tok

    def forward(self, hidden_states):
        router_logits = super().forward(hidden_states)
        top_value, top_index = torch.topk(router_logits, self.top_k, dim=1)
        router_scores = torch.full_like(router_logits, float("-inf")).scatter_(1, top_index, top_value)
        return torch.sigmoid(router_scores)                                     # (T, E), zero where not chosen


class ButterflyViTExperts(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_experts = config.num_local_experts
        self.hidden_size = config.hidden_size
        self.intermediate_size = config.intermediate_size
        l_in, l_out = config.rotation_layers
        n_in = 2 ** math.ceil(math.log2(self.hidden_size))
        n_out = 2 ** math.ceil(math.log2(self.intermediate_size))
        self.theta = nn.Parameter(torch.empty(self.num_experts, l_in, n_in // 2))
        self.phi = nn.Parameter(torch.empty(self.num_experts, l_out, n_out // 2))
        self.up_proj = nn.Parameter(torch.empty(self.intermediate_size, self.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(self.hidden_size, self.intermediate_size))

    def _rotate(self, states, angles):
        num_experts, tokens, width = states.shape
        pairs = angles.shape[-1]
        cos, sin = angles.cos(), angles.sin()
        givens = torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))       # (E, L, pairs, 2, 2)
        states = F.pad(states, (0, 2 * pairs - width))
        for layer in reversed(range(angles.shape[1])):
            states = states.view(num_experts, tokens, pairs, 2)
            states = torch.einsum("etpi,epij->etpj", states, givens[:, layer])
            states = states.flatten(2).view(num_experts, tokens, 2, pairs).transpose(2, 3).flatten(2)
        return states[..., :width]

    def _ternary_up_proj(self):
        weight = self.up_proj
        gamma = weight.abs().mean(dim=1, keepdim=True)
        quantized = (weight / (gamma + 1e-8)).round().clamp(-1, 1) * gamma
        if self.training:
            return weight + (quantized - weight).detach()
        return quantized

    def forward(self, hidden_states):
        hidden_states = hidden_states.view(self.num_experts, -1, self.hidden_size)
        hidden_states = self._rotate(hidden_states, self.theta)
        hidden_states = F.gelu(F.linear(hidden_states, self._ternary_up_proj()))
        hidden_states = self._rotate(hidden_states, self.phi)
        return F.linear(hidden_states, self.down_proj)


class ButterflyViTMoe(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_experts = config.num_local_experts
        self.router = ButterflyViTRouter(config)
        self.experts = ButterflyViTExperts(config)
        self.bias = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden_states):
        shape = hidden_states.shape
        hidden_states = hidden_states.reshape(-1, shape[-1])
        router_scores = self.router(hidden_states)
        routed_in = hidden_states.repeat(self.num_experts, 1)
        routed_in = routed_in * router_scores.transpose(0, 1).reshape(-1, 1)
        routed_out = self.experts(routed_in)
        return (routed_out.sum(dim=0) + self.bias).view(shape)


class ButterflyViTMlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states):
        return self.fc2(F.gelu(self.fc1(hidden_states)))


class ButterflyViTLayer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        is_moe = layer_idx in config.moe_layers
        self.feed_forward = ButterflyViTMoe(config) if is_moe else ButterflyViTMlp(config)

    def forward(self, hidden_states):
        b, n, c = hidden_states.shape
        qkv = self.qkv(self.layernorm_before(hidden_states))
        q, k, v = qkv.view(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        hidden_states = hidden_states + self.proj(context)
        return hidden_states + self.feed_forward(self.layernorm_after(hidden_states))


class ButterflyViTForImageClassification(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        n = (config.image_size // config.patch_size) ** 2
        self.patch = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(1, n + 1, config.hidden_size))
        self.layers = nn.ModuleList([ButterflyViTLayer(config, i) for i in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        for name, p in self.named_parameters():
            if name.endswith(("theta", "phi")):
                p.normal_(0.0, 0.5)
            elif "norm" in name and name.endswith("weight"):
                p.uniform_(0.7, 1.3)
            elif name.endswith("bias"):
                p.normal_(0.0, 0.1)
            elif name.endswith(("cls_token", "position_embeddings")):
                p.normal_(0.0, 0.4)
            else:
                p.normal_(0.0, p[0].numel() ** -0.5)

    def forward(self, pixel_values):
        x = self.patch(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.position_embeddings
        for layer in self.layers:
            x = layer(x)
        return self.classifier(self.layernorm(x)[:, 0])


def make():
    torch.manual_seed(408)
    model = ButterflyViTForImageClassification(ButterflyViTConfig())
    return model.eval(), (torch.randn(2, 3, 24, 24),)


if __name__ == "__main__":
    model, inputs = make()
    print(model(*inputs))
