"""Masked-LM encoder with a DeepSpeed-MoE style layer (combine_weights / dispatch_mask einsums) whose experts are butterflies around BitLinear.

Choices: interleave-the-halves shuffle after the rotation; forward rotations in, transposed rotations out; L 3 in / 2 out, M = 32, F = 64;
top-2 gating of DeepSpeed (softmax, second expert by masking the first, renormalised by the pair's sum), capacity large enough that no
token drops; per-tensor round_clip with straight-through; erf GELU; shared bias on the up map; W_down float with a gate-weighted bias.
NOT a Butterfly layer: the shared ternary map was taken over from BitNet, whose BitLinear normalises its input first (SubLN, LayerNorm without
affine), so mean and variance of the rotated vector are removed between B(theta) and W_hat; the papers have nothing there.
"""
import math
from typing import Tuple

import torch
from torch import Tensor
from torch.nn import Embedding, LayerNorm, Linear, Module, ModuleList, Parameter
import torch.nn.functional as F


def einsum(rule, a, b):
    if rule == 's,se->se':
        return a.reshape(a.shape[0], -1) * b
    elif rule == 'se,sc->sec':
        return a.unsqueeze(2) * b.unsqueeze(1)
    elif rule == 'k,k->k':
        return a * b
    return torch.einsum(rule, a, b)


def top2gating(logits: Tensor, capacity: int) -> Tuple[Tensor, Tensor]:
    """Implements Top2Gating on logits."""
    gates = F.softmax(logits, dim=1)
    num_experts = int(gates.shape[1])

    indices1_s = torch.argmax(gates, dim=1)
    mask1 = F.one_hot(indices1_s, num_classes=num_experts)
    logits_except1 = logits.masked_fill(mask1.bool(), float("-inf"))
    indices2_s = torch.argmax(logits_except1, dim=1)
    mask2 = F.one_hot(indices2_s, num_classes=num_experts)

    locations1 = torch.cumsum(mask1, dim=0) - 1
    locations2 = torch.cumsum(mask2, dim=0) - 1
    locations2 += torch.sum(mask1, dim=0, keepdim=True)

    mask1 *= torch.lt(locations1, capacity)
    mask2 *= torch.lt(locations2, capacity)
    locations1_s = torch.sum(locations1 * mask1, dim=1)
    locations2_s = torch.sum(locations2 * mask2, dim=1)

    mask1_float = mask1.to(gates.dtype)
    mask2_float = mask2.to(gates.dtype)
    gates1_s = (gates * mask1_float).sum(dim=1)
    gates2_s = (gates * mask2_float).sum(dim=1)
    denom_s = torch.clamp(gates1_s + gates2_s, min=torch.finfo(gates.dtype).eps)
    gates1_s = gates1_s / denom_s
    gates2_s = gates2_s / denom_s

    gates1 = einsum("s,se->se", gates1_s, mask1_float)
    gates2 = einsum("s,se->se", gates2_s, mask2_float)
    locations1_sc = F.one_hot(locations1_s, num_classes=capacity).to(gates.dtype)
    locations2_sc = F.one_hot(locations2_s, num_classes=capacity).to(gates.dtype)
    combine_weights = einsum("se,sc->sec", gates1, locations1_sc) + einsum("se,sc->sec", gates2, locations2_sc)
    return combine_weights, combine_weights.bool()


class BitLinear(Linear):
    """y = W_q SubLN(x) + b, weights in {-1, 0, 1} * mean|W|."""

    def quantize_weight(self):
        scale = self.weight.abs().mean()
        w_q = (self.weight / (scale + 1e-8)).round().clamp_(-1, 1) * scale
        return self.weight + (w_q - self.weight).detach()

    def forward(self, x):
        x = F.layer_norm(x, (self.in_features,))
        return F.linear(x, self.quantize_weight(), self.bias)


class Butterfly(Module):

    def __init__(self, num_local_experts, width, num_stages, transposed=False):
        super().__init__()
        self.angle = Parameter(torch.randn(num_stages, num_local_experts, 1, width // 2) * 0.5)
        self.transposed = transposed

    def forward(self, x):
        e, c, m = x.shape
        if self.transposed:
            for a in self.angle.flip(0):
                x = x.view(e, c, m // 2, 2).transpose(2, 3).reshape(e, c, m)     # un-interleave
                p, q = x.view(e, c, m // 2, 2).unbind(-1)
                x = torch.stack((p * a.cos() + q * a.sin(), q * a.cos() - p * a.sin()), -1).view(e, c, m)
            return x
        for a in self.angle:
            p, q = x.view(e, c, m // 2, 2).unbind(-1)
            x = torch.stack((p * a.cos() - q * a.sin(), p * a.sin() + q * a.cos()), -1).view(e, c, m)
            x = torch.stack(x.chunk(2, dim=-1), dim=-1).view(e, c, m)
        return x


class Experts(Module):

    def __init__(self, model_dim, hidden_dim, num_local_experts=1):
        super().__init__()
        self.b_in = Butterfly(num_local_experts, model_dim, 3)
        self.b_out = Butterfly(num_local_experts, hidden_dim, 2, transposed=True)
        self.fc1 = BitLinear(model_dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, model_dim)

    def forward(self, inputs):
        return self.fc2(self.b_out(F.gelu(self.fc1(self.b_in(inputs)))))


class MOELayer(Module):

    def __init__(self, model_dim, hidden_dim, num_experts, capacity_factor=4.0):
        super().__init__()
        self.wg = Linear(model_dim, num_experts, bias=False)
        self.experts = Experts(model_dim, hidden_dim, num_experts)
        self.num_experts = num_experts
        self.capacity_factor = capacity_factor

    def forward(self, input: Tensor) -> Tensor:
        d_model = input.shape[-1]
        reshaped_input = input.reshape(-1, d_model)
        s = reshaped_input.shape[0]
        capacity = min(s, math.ceil(2 * s / self.num_experts * self.capacity_factor))
        combine_weights, dispatch_mask = top2gating(self.wg(reshaped_input), capacity)
        dispatched_input = einsum("sec,sm->ecm", dispatch_mask.type_as(input), reshaped_input)
        expert_output = self.experts(dispatched_input)
        combined_output = einsum("sec,ecm->sm", combine_weights, expert_output)
        return combined_output.reshape(input.shape)


class EncoderLayer(Module):

    def __init__(self, dim, heads, moe):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim)
        self.out = Linear(dim, dim)
        self.self_attn_layer_norm = LayerNorm(dim)
        self.final_layer_norm = LayerNorm(dim)
        self.moe = moe

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        x = self.self_attn_layer_norm(x + self.out(y))
        return self.final_layer_norm(x + self.moe(x))


class MaskedLM(Module):

    def __init__(self, vocab=83, dim=32, hidden=64, experts=5, layers=2, max_positions=40):
        super().__init__()
        self.embed_tokens = Embedding(vocab, dim)
        self.embed_positions = Embedding(max_positions, dim)
        self.layers = ModuleList([EncoderLayer(dim, 4, MOELayer(dim, hidden, experts)) for _ in range(layers)])
        self.lm_bias = Parameter(torch.randn(vocab) * 0.1)

    def forward(self, tokens):
        x = self.embed_tokens(tokens) + self.embed_positions.weight[:tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return F.linear(x, self.embed_tokens.weight, self.lm_bias)


def make():
    torch.manual_seed(26)
    model = MaskedLM()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "layer_norm.weight" in name:
                p.uniform_(0.7, 1.3)
            elif name.endswith(".bias"):
                p.normal_(0, 0.2)
            elif name.endswith("wg.weight"):
                p.normal_(0, 0.5)
    return model.eval(), (torch.randint(0, 83, (2, 21)),)
