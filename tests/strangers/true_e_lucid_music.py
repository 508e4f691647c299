"""
Symbolic music event transformer (pitch / duration / velocity triplets) with Butterfly mixture-of-experts feedforwards.

- form:       W_down . B(phi) . GELU(W_hat . B(theta) x), erf gelu before B(phi), W_down float
- widths:     d = 48 (zero padded to 64), F = 96 (zero padded to 128), stripped once after all layers
- shuffle:    deinterleave (evens then odds), after the rotation
- handedness: plain (counter-clockwise) rotation on both sides
- depth:      L = 6 on the way in, 3 on the way out
- router:     softmax over all experts, top-2, renormalised to sum to one
- quantiser:  gamma = mean|W| per tensor, round and clip, straight-through by detach
- biases:     after W_hat and after W_down, shared by the experts, both inside the gated sum
- dispatch:   dispatch / combine tensors (b, n, e, c), capacity equal to the sequence length so that nothing is dropped
"""
import math

import torch
import torch.nn.functional as F
from torch import nn, einsum

# helpers

def exists(val):
    return val is not None

def default(val, d):
    if exists(val):
        return val
    return d() if callable(d) else d

def next_pow2(n):
    return 1 << (n - 1).bit_length()

def cumsum_exclusive(t, dim = -1):
    return t.cumsum(dim = dim) - t

def pad_last_to(t, length):
    remain = length - t.shape[-1]
    return F.pad(t, (0, remain)) if remain > 0 else t

def rotate_half(x):
    x1, x2 = x.chunk(2, dim = -1)
    return torch.cat((-x2, x1), dim = -1)

# butterfly

class ExpertButterfly(nn.Module):
    """ one set of givens angles per expert, acts on (e, m, d) """

    def __init__(self, dim, *, num_experts, depth = None):
        super().__init__()
        self.dim = dim
        self.padded_dim = next_pow2(dim)
        self.depth = default(depth, lambda: int(math.log2(self.padded_dim)))
        self.angles = nn.Parameter(torch.randn(self.depth, num_experts, self.padded_dim // 2) * 0.5)

    def forward(self, x):
        e, m, _ = x.shape
        x = pad_last_to(x, self.padded_dim)

        for theta in self.angles:
            # e m (j two) -> e m j two
            x = x.reshape(e, m, -1, 2)
            a, b = x[..., 0], x[..., 1]

            # e j -> e 1 j
            cos, sin = theta.cos()[:, None, :], theta.sin()[:, None, :]

            # 'two e m j -> e m (two j)' does both the rotation's merge and the perfect shuffle
            x = torch.cat((a * cos - b * sin, a * sin + b * cos), dim = -1)

        return x[..., :self.dim]

# ternary substrate

class TernaryWeight(nn.Module):
    def __init__(self, dim_out, dim_in, eps = 1e-8):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.randn(dim_out, dim_in) * dim_in ** -0.5)

    def forward(self):
        w = self.weight
        gamma = w.abs().mean()
        w_hat = (w / (gamma + self.eps)).round().clamp(-1, 1) * gamma
        return w + (w_hat - w).detach()

class ButterflyExperts(nn.Module):
    def __init__(self, dim, *, num_experts, dim_hidden = None, depth_in = None, depth_out = None):
        super().__init__()
        dim_hidden = default(dim_hidden, dim * 2)
        self.rot_in = ExpertButterfly(dim, num_experts = num_experts, depth = depth_in)
        self.rot_out = ExpertButterfly(dim_hidden, num_experts = num_experts, depth = depth_out)
        self.substrate = TernaryWeight(dim_hidden, dim)
        self.bias = nn.Parameter(torch.randn(dim_hidden) * 0.2)
        self.act = nn.GELU()
        self.to_out = nn.Linear(dim_hidden, dim)

    def forward(self, x):
        x = self.rot_in(x)
        x = einsum('e m d, f d -> e m f', x, self.substrate()) + self.bias
        x = self.act(x)
        x = self.rot_out(x)
        return self.to_out(x)

# gating

class TopNGating(nn.Module):
    def __init__(self, dim, num_experts, top_n = 2, eps = 1e-9):
        super().__init__()
        self.top_n = top_n
        self.eps = eps
        self.num_experts = num_experts
        self.to_gates = nn.Linear(dim, num_experts, bias = False)

    def forward(self, x):
        b, n, _ = x.shape
        capacity = n

        raw_gates = self.to_gates(x).softmax(dim = -1)
        gates, indices = raw_gates.topk(self.top_n, dim = -1)
        gates = gates / gates.sum(dim = -1, keepdim = True).clamp(min = self.eps)

        # b n k -> k b n
        gates, indices = gates.permute(2, 0, 1), indices.permute(2, 0, 1)
        one_hot = F.one_hot(indices, self.num_experts).to(x.dtype)         # k b n e

        prev_count = x.new_zeros(b, 1, self.num_experts)
        combine = x.new_zeros(b, n, self.num_experts, capacity)

        for gate, mask in zip(gates, one_hot):
            position = ((cumsum_exclusive(mask, dim = -2) + prev_count) * mask).sum(dim = -1)
            prev_count = prev_count + mask.sum(dim = -2, keepdim = True)
            slot = F.one_hot(position.long(), capacity).to(x.dtype)          # b n c
            combine = combine + gate[..., None, None] * mask[..., :, None] * slot[..., None, :]

        dispatch = combine.bool().to(x.dtype)
        return dispatch, combine

class MoE(nn.Module):
    def __init__(self, dim, num_experts, *, experts = None, top_n = 2, **expert_kwargs):
        super().__init__()
        self.gate = TopNGating(dim, num_experts, top_n = top_n)
        self.experts = default(experts, lambda: ButterflyExperts(dim, num_experts = num_experts, **expert_kwargs))

    def forward(self, x):
        dispatch, combine = self.gate(x)

        # dispatch
        expert_inputs = einsum('b n d, b n e c -> e b c d', x, dispatch)

        # e b c d -> e (b c) d
        e, b, c, d = expert_inputs.shape
        expert_outputs = self.experts(expert_inputs.reshape(e, b * c, d))
        expert_outputs = expert_outputs.reshape(e, b, c, d)

        # combine
        return einsum('e b c d, b n e c -> b n d', expert_outputs, combine)

# attention

class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.scale = dim ** 0.5
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return F.normalize(x, dim = -1) * self.scale * self.gamma

class Attention(nn.Module):
    def __init__(self, dim, *, heads = 4, dim_head = 12):
        super().__init__()
        self.heads = heads
        self.scale = dim_head ** -0.5
        self.norm = RMSNorm(dim)
        self.to_qkv = nn.Linear(dim, heads * dim_head * 3, bias = False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias = False)
        self.register_buffer('inv_freq', 10000 ** -(torch.arange(0, dim_head, 2) / dim_head), persistent = False)

    def forward(self, x):
        b, n, h = *x.shape[:2], self.heads
        q, k, v = self.to_qkv(self.norm(x)).reshape(b, n, 3, h, -1).permute(2, 0, 3, 1, 4)

        freqs = torch.arange(n, device = x.device).to(self.inv_freq)[:, None] * self.inv_freq
        freqs = torch.cat((freqs, freqs), dim = -1)
        q, k = (t * freqs.cos() + rotate_half(t) * freqs.sin() for t in (q, k))

        sim = einsum('b h i d, b h j d -> b h i j', q, k) * self.scale
        causal_mask = torch.ones((n, n), dtype = torch.bool, device = x.device).triu(1)
        sim = sim.masked_fill(causal_mask, -torch.finfo(sim.dtype).max)
        out = einsum('b h i j, b h j d -> b h i d', sim.softmax(dim = -1), v)
        return self.to_out(out.transpose(1, 2).reshape(b, n, -1))

# main class

class MusicEventTransformer(nn.Module):
    def __init__(self, *, dim, depth, num_pitches = 88, num_durations = 12, num_velocities = 8, num_experts = 6, **moe_kwargs):
        super().__init__()
        self.embeds = nn.ModuleList([nn.Embedding(n, dim) for n in (num_pitches, num_durations, num_velocities)])
        self.layers = nn.ModuleList([])
        for _ in range(depth):
            self.layers.append(nn.ModuleList([
                Attention(dim),
                RMSNorm(dim),
                MoE(dim, num_experts, **moe_kwargs)
            ]))
        self.norm = RMSNorm(dim)
        self.to_logits = nn.Linear(dim, num_pitches)

    def forward(self, events):
        x = sum(embed(ids) for embed, ids in zip(self.embeds, events.unbind(dim = -1)))

        for attn, norm, moe in self.layers:
            x = attn(x) + x
            x = moe(norm(x)) + x

        return self.to_logits(self.norm(x))

def make():
    torch.manual_seed(1208)
    model = MusicEventTransformer(dim = 48, depth = 2, num_experts = 6, dim_hidden = 96, depth_out = 3, top_n = 2)

    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith('.gamma'):
                p.uniform_(0.7, 1.3)
            elif name.endswith('.bias'):
                p.normal_(0, 0.2)
            elif 'to_gates' in name:
                p.normal_(0, 0.5)

    events = torch.stack((torch.randint(0, 88, (2, 24)), torch.randint(0, 12, (2, 24)), torch.randint(0, 8, (2, 24))), dim = -1)
    return model.eval(), (events,)

if __name__ == '__main__':
    model, inputs = make()
    with torch.no_grad():
        print(model(*inputs).shape)
