"""V-MoE style image classifier (a port of mesh JAX code): pre-norm ViT, no class token, global mean pooling.

Shuffle:     evens first, then odds (deinterleave), applied after each Givens rotation (Algorithm 1), plain rotation on both sides.
Depth:       L_in = 3, L_out = 2.  d = 48 -> 64 and F = 96 -> 128, zero-padded once around all the layers of a rotation.
Router:      bias-free, softmax over all experts, then top-2, not renormalised; importance loss returned beside the logits.
Quantiser:   absmean of the whole kernel, round and clip, straight-through; kernels stored [in, out] as in Flax.
Form:        W_down . B(phi) . GELU_tanh(W_hat . B(theta) x + b_up) + b_down, W_down float, both biases shared, weighted by the gate.
Dispatch:    [G, S, d] groups, one-hot combine tensor [G, S, E, C], einsum 'GSEC', capacity C = S so that nothing is dropped,
             experts' buffers with the expert axis leading [E, G * C, d].
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def next_pow2(n):
    return 1 << (n - 1).bit_length()


class DenseGeneral(nn.Module):
    """x[..., in] -> x[..., *features], the kernel laid out [in, *features]."""

    def __init__(self, in_features, features):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(in_features, math.prod(features)).div(in_features ** 0.5).view(in_features, *features))
        self.bias = nn.Parameter(0.1 * torch.randn(*features))

    def forward(self, x):
        return torch.tensordot(x, self.kernel, dims=1) + self.bias


class SelfAttention(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.query = DenseGeneral(d, (heads, d // heads))
        self.key = DenseGeneral(d, (heads, d // heads))
        self.value = DenseGeneral(d, (heads, d // heads))
        self.out = DenseGeneral(d, (d,))

    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)
        w = torch.einsum("BQHD,BKHD->BHQK", q / q.shape[-1] ** 0.5, k).softmax(-1)
        return self.out(torch.einsum("BHQK,BKHD->BQHD", w, v).flatten(2))


def top_experts_dispatcher(gates, num_selected, capacity):
    """Combine tensor [G, S, E, C]; every token's first choice is placed before any token's second choice."""
    G, S, E = gates.shape
    _, expert_index = torch.topk(gates, num_selected, dim=-1)                    # [G, S, K]
    expert_index = expert_index.transpose(1, 2).reshape(G, num_selected * S)     # [G, K * S]
    one_hot = F.one_hot(expert_index, E)                                         # [G, K * S, E]
    buffer_index = torch.cumsum(one_hot, dim=1) * one_hot - 1                    # -1: not chosen
    buffer_index = buffer_index.reshape(G, num_selected, S, E).amax(dim=1)       # [G, S, E]
    slots = torch.arange(capacity, device=gates.device)
    dispatch = (buffer_index.unsqueeze(-1) == slots).to(gates.dtype)             # [G, S, E, C]
    return torch.einsum("GSE,GSEC->GSEC", gates, dispatch)


def importance_loss(gates):
    importance = gates.sum(dim=(0, 1))
    return importance.var(unbiased=False) / importance.mean() ** 2


def givens(x, angles):
    """x [E, N, n], angles [E, n / 2]: every expert turns its own buffer."""
    pairs = x.unflatten(-1, (-1, 2))
    cos = torch.cos(angles)[:, None, :, None]
    sin = torch.sin(angles)[:, None, :, None] * torch.tensor([-1.0, 1.0], dtype=x.dtype, device=x.device)
    return (pairs * cos + pairs.flip(-1) * sin).flatten(-2)


def butterfly(x, angles):
    """x [E, N, width], angles [E, L, n / 2]."""
    width, n = x.shape[-1], 2 * angles.shape[-1]
    x = F.pad(x, (0, n - width))
    for l in range(angles.shape[1]):
        x = givens(x, angles[:, l])
        x = torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)
    return x[..., :width]


def ternary(kernel, eps=1e-8):
    gamma = kernel.abs().mean()
    q = gamma * torch.clamp(torch.round(kernel / (gamma + eps)), -1, 1)
    return kernel + (q - kernel).detach()


class ButterflyMoeMlp(nn.Module):
    def __init__(self, d, d_ff, num_experts, num_selected, layers_in, layers_out, group_size):
        super().__init__()
        self.num_experts, self.num_selected, self.group_size = num_experts, num_selected, group_size
        self.capacity_factor = num_experts / num_selected
        self.router_kernel = nn.Parameter(torch.randn(d, num_experts) * 0.2)
        self.theta = nn.Parameter(0.5 * torch.randn(num_experts, layers_in, next_pow2(d) // 2))
        self.phi = nn.Parameter(0.5 * torch.randn(num_experts, layers_out, next_pow2(d_ff) // 2))
        self.wi = nn.Parameter(torch.randn(d, d_ff) / d ** 0.5)
        self.bi = nn.Parameter(0.2 * torch.randn(d_ff))
        self.wo = nn.Parameter(torch.randn(d_ff, d) / d_ff ** 0.5)
        self.bo = nn.Parameter(0.2 * torch.randn(d))

    def experts(self, x):
        """[E, G * C, d] -> [E, G * C, d]."""
        x = butterfly(x, self.theta)
        x = F.gelu(torch.einsum("END,DF->ENF", x, ternary(self.wi)) + self.bi, approximate="tanh")
        x = butterfly(x, self.phi)
        return torch.einsum("ENF,FD->END", x, self.wo) + self.bo

    def forward(self, inputs):
        x = inputs.reshape(-1, self.group_size, inputs.shape[-1])                # [G, S, d]
        G, S, d = x.shape
        gates = torch.softmax(torch.einsum("GSD,DE->GSE", x, self.router_kernel), dim=-1)
        capacity = min(S, math.ceil(S * self.num_selected * self.capacity_factor / self.num_experts))
        combine = top_experts_dispatcher(gates, self.num_selected, capacity)
        dispatch = (combine > 0).to(x.dtype)
        buffers = torch.einsum("GSD,GSEC->EGCD", x, dispatch)
        outputs = self.experts(buffers.reshape(self.num_experts, G * capacity, d))
        outputs = outputs.reshape(self.num_experts, G, capacity, d)
        y = torch.einsum("EGCD,GSEC->GSD", outputs, combine)
        return y.reshape(inputs.shape), importance_loss(gates)


class EncoderBlock(nn.Module):
    def __init__(self, d, heads, **moe):
        super().__init__()
        self.norm_0, self.norm_1 = nn.LayerNorm(d, eps=1e-6), nn.LayerNorm(d, eps=1e-6)
        self.attention = SelfAttention(d, heads)
        self.moe = ButterflyMoeMlp(d, **moe)

    def forward(self, x):
        x = x + self.attention(self.norm_0(x))
        y, loss = self.moe(self.norm_1(x))
        return x + y, loss


class VisionTransformerMoe(nn.Module):
    def __init__(self, image=24, patch=6, d=48, heads=4, depth=2, classes=10, **moe):
        super().__init__()
        tokens = (image // patch) ** 2
        self.embedding = nn.Conv2d(3, d, patch, stride=patch)
        self.posembed_input = nn.Parameter(0.2 * torch.randn(1, tokens, d))
        self.blocks = nn.ModuleList(EncoderBlock(d, heads, **moe) for _ in range(depth))
        self.encoder_norm = nn.LayerNorm(d, eps=1e-6)
        self.head = DenseGeneral(d, (classes,))

    def forward(self, images):
        x = self.embedding(images).flatten(2).transpose(1, 2) + self.posembed_input
        losses = []
        for block in self.blocks:
            x, loss = block(x)
            losses.append(loss)
        x = self.encoder_norm(x).mean(dim=1)
        return self.head(x), torch.stack(losses).mean()


def make():
    torch.manual_seed(601)
    model = VisionTransformerMoe(d_ff=96, num_experts=8, num_selected=2, layers_in=3, layers_out=2, group_size=24)
    with torch.no_grad():
        for mod in model.modules():
            if isinstance(mod, nn.LayerNorm):
                mod.weight.add_(0.2 * torch.randn_like(mod.weight))
                mod.bias.add_(0.2 * torch.randn_like(mod.bias))
    return model.eval(), (torch.randn(3, 3, 24, 24),)
