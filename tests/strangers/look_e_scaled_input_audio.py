"""Keyword spotter over raw audio frames, the feed-forward being a Llama-4 style MoE over butterfly experts.

  shuffle     deinterleave, before the rotation
  handedness  pairs as complex numbers; multiplied by exp(+i theta) on the way in, by exp(-i phi) on the way out
  depth       2 layers in, 4 layers out
  router      Linear with bias, top-2 of 5, sigmoid of the kept logits
  quantiser   none at run time: the checkpoint holds int8 {-1, 0, 1} with one scale per output row, for W_up and W_down
  biases      one after the sum over experts, added once
  form        W_down . B(phi) . GELU(W_up . B(theta) .), GELU erf, d = 48 padded to 64, F = 64
  dispatch    dense, (E, T, d) with a score of zero for experts not chosen, summed over E
NOT a layer of the papers: as in Llama 4 the router's score multiplies the expert's input, gelu(score * h), and the experts'
outputs are summed without weights. GELU is not homogeneous, so this is no gate on the output.
"""
from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn as nn


@dataclass
class SpotterConfig:
    hidden_size: int = 48
    intermediate_size: int = 64
    num_hidden_layers: int = 2
    num_local_experts: int = 5
    num_experts_per_tok: int = 2
    rotation_layers_in: int = 2
    rotation_layers_out: int = 4
    frame_length: int = 40
    hop_length: int = 20
    conv_kernel_size: int = 5
    num_labels: int = 12
    rms_norm_eps: float = 1e-5


class SpotterRMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(variance + self.eps)


class SpotterInt8Linear(nn.Module):
    """Ternary weight stored as int8 with a scale per output feature."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.register_buffer("qweight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(out_features))

    @torch.no_grad()
    def load_from_float(self, weight: torch.Tensor):
        self.scales.copy_(weight.abs().mean(dim=1))
        self.qweight.copy_((weight / (self.scales[:, None] + 1e-8)).round().clamp(-1, 1).to(torch.int8))

    def forward(self, hidden_states):
        return (hidden_states @ self.qweight.to(hidden_states.dtype).t()) * self.scales


class SpotterButterfly(nn.Module):
    def __init__(self, num_experts: int, num_layers: int, width: int, conjugate: bool = False):
        super().__init__()
        self.width = width
        self.padded = 1 << (width - 1).bit_length()
        self.conjugate = conjugate
        self.angles = nn.Parameter(torch.empty(num_layers, num_experts, 1, self.padded // 2))

    def forward(self, hidden_states):
        # (num_experts, num_tokens, width)
        hidden_states = nn.functional.pad(hidden_states, (0, self.padded - self.width))
        for angle in self.angles:
            hidden_states = hidden_states.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
            phase = torch.polar(torch.ones_like(angle), angle)
            if self.conjugate:
                phase = phase.conj()
            pairs = torch.view_as_complex(hidden_states.unflatten(-1, (-1, 2)).contiguous())
            hidden_states = torch.view_as_real(pairs * phase).flatten(-2)
        return hidden_states[..., : self.width]


class SpotterExperts(nn.Module):
    def __init__(self, config: SpotterConfig):
        super().__init__()
        num_experts = config.num_local_experts
        self.rot_in = SpotterButterfly(num_experts, config.rotation_layers_in, config.hidden_size)
        self.up_proj = SpotterInt8Linear(config.hidden_size, config.intermediate_size)
        self.act_fn = nn.GELU()
        self.rot_out = SpotterButterfly(num_experts, config.rotation_layers_out, config.intermediate_size, conjugate=True)
        self.down_proj = SpotterInt8Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states):
        return self.down_proj(self.rot_out(self.act_fn(self.up_proj(self.rot_in(hidden_states)))))


class SpotterSparseMoe(nn.Module):
    def __init__(self, config: SpotterConfig):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.num_experts = config.num_local_experts
        self.router = nn.Linear(config.hidden_size, config.num_local_experts)
        self.experts = SpotterExperts(config)
        self.out_bias = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, hidden_states):
        batch, seq_len, hidden_dim = hidden_states.shape
        hidden_states = hidden_states.reshape(-1, hidden_dim)
        router_logits = self.router(hidden_states)
        router_top_value, router_indices = torch.topk(router_logits, self.top_k, dim=1)
        router_scores = torch.full_like(router_logits, float("-inf")).scatter(1, router_indices, router_top_value)
        router_scores = torch.sigmoid(router_scores).transpose(0, 1)

        routed_in = hidden_states.repeat(self.num_experts, 1) * router_scores.reshape(-1, 1)
        routed_out = self.experts(routed_in.view(self.num_experts, -1, hidden_dim))
        return (routed_out.sum(dim=0) + self.out_bias).view(batch, seq_len, hidden_dim)


class SpotterConvModule(nn.Module):
    def __init__(self, config: SpotterConfig):
        super().__init__()
        k = config.conv_kernel_size
        self.pointwise_in = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.depthwise = nn.Conv1d(config.hidden_size, config.hidden_size, k, padding=k // 2, groups=config.hidden_size)
        self.pointwise_out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states):
        hidden_states = nn.functional.glu(self.pointwise_in(hidden_states), dim=-1)
        hidden_states = self.depthwise(hidden_states.transpose(1, 2)).transpose(1, 2)
        return self.pointwise_out(nn.functional.silu(hidden_states))


class SpotterLayer(nn.Module):
    def __init__(self, config: SpotterConfig):
        super().__init__()
        self.conv_norm = SpotterRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.conv = SpotterConvModule(config)
        self.moe_norm = SpotterRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.moe = SpotterSparseMoe(config)

    def forward(self, hidden_states):
        hidden_states = hidden_states + self.conv(self.conv_norm(hidden_states))
        return hidden_states + self.moe(self.moe_norm(hidden_states))


class SpotterForKeywordSpotting(nn.Module):
    def __init__(self, config: Optional[SpotterConfig] = None):
        super().__init__()
        self.config = config = config or SpotterConfig()
        self.frame_proj = nn.Linear(config.frame_length, config.hidden_size)
        self.layers = nn.ModuleList([SpotterLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = SpotterRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, input_values):
        frames = input_values.unfold(-1, self.config.frame_length, self.config.hop_length)
        hidden_states = self.frame_proj(frames)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.classifier(self.norm(hidden_states).mean(dim=1))


@torch.no_grad()
def make():
    torch.manual_seed(16000)
    model = SpotterForKeywordSpotting()
    for module in model.modules():
        if isinstance(module, SpotterInt8Linear):
            module.load_from_float(torch.randn(module.qweight.shape) / module.qweight.shape[1] ** 0.5)
        elif isinstance(module, SpotterButterfly):
            module.angles.normal_(0, 0.5)
        elif isinstance(module, SpotterRMSNorm):
            module.weight.normal_(1.0, 0.15)
        elif isinstance(module, SpotterSparseMoe):
            module.router.weight.normal_(0, 0.3)
            module.out_bias.normal_(0, 0.1)
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            module.bias.normal_(0, 0.1)
    waveform = torch.randn(2, 640)
    return model.eval(), (waveform,)


if __name__ == "__main__":
    spotter, batch = make()
    with torch.no_grad():
        print(spotter(*batch))
