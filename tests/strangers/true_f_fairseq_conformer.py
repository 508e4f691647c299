"""Keyword spotting with a conformer-like encoder; the feed-forward sublayer is a fairseq / Tutel MoE layer moved over
to Butterfly experts (ButterflyViT, Algorithm 2).

  rotation    stack / flatten on even-odd channels, de-interleaving shuffle (x[0::2], x[1::2]) after the rotation
  handedness  B(theta) going in, B(phi) going out (neither transposed); L_in = 3, L_out = 2
  width       d = 48 (padded to 64), F = 96 (padded to 128)
  router      softmax over all experts, GShard top-2, the two gates renormalised; E = 6, linear router without bias
  quantiser   absmean round-clip, one gamma per tensor, straight-through; W_down stays float
  biases      b1 after W_hat, b2 after W_down, shared by the experts, inside the gate (weighted)
  form        W_down . B(phi) . GELU(erf)(W_hat . B(theta) x + b1) + b2
  dispatch    locations by cumsum, combine_weights / dispatch_mask [S, E, C], einsum; eval capacity is every token
  output      (logits, l_aux)
"""
import math
from typing import Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

EVAL_CAPACITY_TOKEN_FRACTION = 1.0


def fused_cumsum_sub_one(mask: Tensor) -> Tensor:
    return torch.cumsum(mask, dim=0) - 1


def one_hot(indices: Tensor, num_classes: int, unsqueeze_indices: bool = False) -> Tensor:
    if unsqueeze_indices:
        indices = indices.unsqueeze(-1)
    output = torch.zeros(indices.shape[:-1] + (num_classes,), device=indices.device, dtype=torch.int64)
    output.scatter_(len(output.shape) - 1, indices, 1)
    return output


def top2gating(logits: Tensor, eval_mode: bool = False) -> Tuple[Tensor, Tensor, Tensor]:
    """Implements Top2Gating on logits [S, E]."""
    gates = F.softmax(logits, dim=1)
    num_tokens, num_experts = gates.shape
    if eval_mode and EVAL_CAPACITY_TOKEN_FRACTION > 0.0:
        capacity = math.ceil(EVAL_CAPACITY_TOKEN_FRACTION * num_tokens)
    else:
        capacity = 2 * math.ceil(num_tokens / num_experts)

    # 1st expert per token
    indices1_s = torch.argmax(gates, dim=1, keepdim=True)
    mask1 = one_hot(indices1_s, num_experts)
    # 2nd expert per token
    logits_except1 = logits.masked_fill(mask1.bool(), float("-inf"))
    indices2_s = torch.argmax(logits_except1, dim=1, keepdim=True)
    mask2 = one_hot(indices2_s, num_experts)

    gates1_s = (gates * mask1).sum(dim=1)
    gates2_s = (gates * mask2).sum(dim=1)
    denom_s = torch.clamp(gates1_s + gates2_s, min=torch.finfo(gates.dtype).eps)
    gates1_s = gates1_s / denom_s
    gates2_s = gates2_s / denom_s

    # positions inside the capacity buffer; second choices queue behind all first choices
    locations1 = fused_cumsum_sub_one(mask1)
    locations2 = fused_cumsum_sub_one(mask2)
    locations2 = locations2 + torch.sum(mask1, dim=0, keepdim=True)

    me = torch.mean(gates, dim=0)
    ce = torch.mean(mask1.to(gates.dtype), dim=0)
    l_aux = torch.mean(me * ce) * num_experts * num_experts

    mask1 = mask1 * torch.lt(locations1, capacity)
    mask2 = mask2 * torch.lt(locations2, capacity)
    locations1_s = torch.sum(locations1 * mask1, dim=1)
    locations2_s = torch.sum(locations2 * mask2, dim=1)

    gates1 = gates1_s.unsqueeze(-1) * mask1.to(gates1_s.dtype)
    gates2 = gates2_s.unsqueeze(-1) * mask2.to(gates2_s.dtype)
    locations1_sc = one_hot(locations1_s, num_classes=capacity, unsqueeze_indices=True)
    locations2_sc = one_hot(locations2_s, num_classes=capacity, unsqueeze_indices=True)
    combine1_sec = torch.bmm(gates1.unsqueeze(-1), locations1_sc.to(gates1.dtype).unsqueeze(1))
    combine2_sec = torch.bmm(gates2.unsqueeze(-1), locations2_sc.to(gates2.dtype).unsqueeze(1))
    combine_weights = combine1_sec + combine2_sec
    return l_aux, combine_weights, combine_weights.bool()


class Top2Gate(nn.Module):
    def __init__(self, model_dim: int, num_experts: int):
        super().__init__()
        self.wg = nn.Linear(model_dim, num_experts, bias=False)

    def forward(self, input: Tensor):
        return top2gating(self.wg(input), eval_mode=not self.training)


class ButterflyRotation(nn.Module):
    def __init__(self, dim: int, num_layers: int):
        super().__init__()
        self.dim = dim
        self.padded_dim = 1 << (dim - 1).bit_length()
        self.angles = nn.Parameter(torch.zeros(num_layers, self.padded_dim // 2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, self.padded_dim - self.dim))
        for angle in self.angles:
            c, s = angle.cos(), angle.sin()
            even, odd = x[..., 0::2], x[..., 1::2]
            x = torch.stack((c * even - s * odd, s * even + c * odd), dim=-1).flatten(-2)
            x = torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
        return x[..., : self.dim]


class TernarySubstrate(nn.Module):
    """fc1 / fc2 of a fairseq FeedForwardNetwork, owned once per MoE layer."""

    def __init__(self, embed_dim: int, ffn_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, embed_dim)

    def up(self, x: Tensor) -> Tensor:
        w = self.fc1.weight
        gamma = w.abs().mean()
        w_hat = gamma * torch.clamp(torch.round(w / (gamma + 1e-8)), -1, 1)
        return F.linear(x, w + (w_hat - w).detach(), self.fc1.bias)


class ButterflyExpert(nn.Module):
    def __init__(self, substrate: TernarySubstrate, embed_dim: int, ffn_dim: int, layers_in: int, layers_out: int):
        super().__init__()
        self.substrate = substrate
        self.theta = ButterflyRotation(embed_dim, layers_in)
        self.phi = ButterflyRotation(ffn_dim, layers_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.substrate.up(self.theta(x)))
        return self.substrate.fc2(self.phi(x))


class MOELayer(nn.Module):
    def __init__(self, gate: nn.Module, experts: nn.ModuleList):
        super().__init__()
        self.gate = gate
        self.experts = experts
        self.world_size = 1
        self.num_local_experts = len(experts)

    def forward(self, input: Tensor) -> Tuple[Tensor, Tensor]:
        d_model = input.shape[2]
        reshaped_input = input.reshape(-1, d_model)
        l_aux, combine_weights, dispatch_mask = self.gate(reshaped_input)
        dispatched_input = torch.einsum("sec,sm->ecm", dispatch_mask.to(input.dtype), reshaped_input)
        dispatched_input = dispatched_input.reshape(self.world_size, self.num_local_experts, -1, d_model)
        chunks = dispatched_input.chunk(self.num_local_experts, dim=1)
        expert_outputs = [expert(chunk) for chunk, expert in zip(chunks, self.experts)]
        expert_output = torch.cat(expert_outputs, dim=1)
        expert_output = expert_output.reshape(self.world_size * self.num_local_experts, -1, d_model)
        combined_output = torch.einsum("sec,ecm->sm", combine_weights, expert_output)
        return combined_output.reshape(input.shape), l_aux


class ConvolutionModule(nn.Module):
    def __init__(self, dim: int, kernel: int = 7):
        super().__init__()
        self.layer_norm = nn.LayerNorm(dim)
        self.pointwise_conv1 = nn.Conv1d(dim, 2 * dim, 1)
        self.depthwise_conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.batch_norm = nn.BatchNorm1d(dim)
        self.pointwise_conv2 = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.pointwise_conv1(self.layer_norm(x).transpose(1, 2)), dim=1)
        x = F.silu(self.batch_norm(self.depthwise_conv(x)))
        return self.pointwise_conv2(x).transpose(1, 2)


class ConformerMoELayer(nn.Module):
    def __init__(self, dim: int, ffn_dim: int, heads: int, num_experts: int, layers_in: int, layers_out: int):
        super().__init__()
        self.attn_norm = nn.LayerNorm(dim)
        self.self_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.conv_module = ConvolutionModule(dim)
        self.moe_norm = nn.LayerNorm(dim)
        substrate = TernarySubstrate(dim, ffn_dim)
        experts = nn.ModuleList(
            [ButterflyExpert(substrate, dim, ffn_dim, layers_in, layers_out) for _ in range(num_experts)])
        self.moe_layer = MOELayer(Top2Gate(dim, num_experts), experts)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        h = self.attn_norm(x)
        x = x + self.self_attn(h, h, h, key_padding_mask=mask, need_weights=False)[0]
        x = x + self.conv_module(x)
        h, l_aux = self.moe_layer(self.moe_norm(x))
        return self.final_layer_norm(x + h), l_aux


class SpeechCommandEncoder(nn.Module):
    def __init__(self, n_mels=20, dim=48, ffn_dim=96, heads=4, depth=2, num_experts=6, num_classes=12):
        super().__init__()
        self.subsample = nn.Conv1d(n_mels, dim, 3, stride=2, padding=1)
        self.layers = nn.ModuleList([ConformerMoELayer(dim, ffn_dim, heads, num_experts, 3, 2) for _ in range(depth)])
        self.head = nn.Linear(dim, num_classes)

    def forward(self, log_mel: Tensor):
        x = F.silu(self.subsample(log_mel.transpose(1, 2))).transpose(1, 2)
        l_aux = x.new_zeros(())
        for layer in self.layers:
            x, aux = layer(x)
            l_aux = l_aux + aux
        return self.head(x.mean(dim=1)), l_aux / len(self.layers)


def make():
    torch.manual_seed(612)
    model = SpeechCommandEncoder()
    for name, p in model.named_parameters():
        if name.endswith("angles"):
            nn.init.normal_(p, 0.0, 0.5)
        elif name.endswith("bias"):
            nn.init.normal_(p, 0.0, 0.1)
        elif "norm" in name:
            nn.init.normal_(p, 1.0, 0.2)
        elif name.endswith("wg.weight"):
            nn.init.normal_(p, 0.0, 0.35)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d):
            m.running_mean.normal_(0.0, 0.1)
            m.running_var.uniform_(0.05, 0.3)
    return model.eval(), (1.5 * torch.randn(2, 38, 20),)
