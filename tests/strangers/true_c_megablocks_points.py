"""Point-cloud set transformer; the feed-forward is a dropless butterfly MoE in the style of a MegaBlocks port (sort, bins, binned gather).

shuffle     none: FFT-style pairs at distance 1, 2, 4, ... (channel i with i ^ stride)
handedness  low' = c low - s high, high' = s low + c high, both sides forward
L           5 in (24 -> 32 zero-padded), 4 out (48 -> 64 zero-padded), stripped after the last layer
router      softmax over 9 experts, top-2, renormalised to sum one (normalize_expert_weights = 1)
quantiser   checkpoint already ternary: int8 codes and one scale per output row; W_down float
biases      shared w1 bias in front of the GELU (erf); no bias on w2
form        Algorithm 2
dispatch    radix-sort of the expert ids, bincount + cumsum for the bins, gather into [E, capacity, d], all experts at once, scatter back
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Arguments(NamedTuple):
    hidden_size: int = 24
    ffn_hidden_size: int = 48
    moe_num_experts: int = 9
    moe_top_k: int = 2
    butterfly_in: int = 5
    butterfly_out: int = 4
    num_layers: int = 2
    num_heads: int = 3
    num_seeds: int = 4
    num_classes: int = 10


class ops:

    @staticmethod
    def sort(x):
        return torch.sort(x, stable=True)

    @staticmethod
    def histogram(x, n):
        return torch.bincount(x, minlength=n)

    @staticmethod
    def inclusive_cumsum(x):
        return torch.cumsum(x, 0)

    @staticmethod
    def binned_gather(x, rows, cols, indices, num_experts, capacity, top_k):
        out = x.new_zeros(num_experts, capacity, x.shape[-1])
        out[rows, cols] = x[torch.div(indices, top_k, rounding_mode="floor")]
        return out

    @staticmethod
    def binned_scatter(x, rows, cols, indices, weights, num_tokens, top_k):
        flat = x.new_zeros(num_tokens * top_k, x.shape[-1])
        flat[indices] = x[rows, cols]
        return (flat * weights.reshape(-1, 1)).view(num_tokens, top_k, -1).sum(1)

    @staticmethod
    def butterfly(x, angles):
        """x: [E, C, n], angles: [E, L, m // 2] with m the padded width"""
        n, m = x.shape[-1], 2 * angles.shape[-1]
        x = F.pad(x, (0, m - n))
        i = torch.arange(m, device=x.device)
        for level in range(angles.shape[1]):
            stride = 1 << level
            low = torch.bitwise_and(i, stride) == 0
            pair = torch.div(i, 2 * stride, rounding_mode="floor") * stride + i % stride
            a = angles[:, level, pair].unsqueeze(1)
            partner = torch.where(low, torch.roll(x, -stride, -1), torch.roll(x, stride, -1))
            x = a.cos() * x + torch.where(low, -a.sin(), a.sin()) * partner
        return x[..., :n]


class LearnedRouter(torch.nn.Module):

    def __init__(self, args):
        super().__init__()
        self.args = args
        self.layer = torch.nn.Linear(args.hidden_size, args.moe_num_experts, bias=False)

    def forward(self, x):
        scores = self.layer(x).softmax(dim=-1)
        expert_weights, expert_indices = torch.topk(scores, self.args.moe_top_k, dim=-1)
        expert_weights = expert_weights / torch.norm(expert_weights, p=1, dim=-1, keepdim=True)
        return expert_weights, expert_indices


class TernaryMLP(torch.nn.Module):

    def __init__(self, args):
        super().__init__()
        d, f, e = args.hidden_size, args.ffn_hidden_size, args.moe_num_experts
        pad = lambda n: 1 << (n - 1).bit_length()
        self.register_buffer("w1_codes", torch.randint(-1, 2, (f, d), dtype=torch.int8))
        self.register_buffer("w1_scale", torch.empty(f, 1).uniform_(0.15, 0.4))
        self.w1_bias = torch.nn.Parameter(torch.randn(f) * 0.2)
        self.w2 = torch.nn.Parameter(torch.randn(f, d) * f ** -0.5)
        self.theta = torch.nn.Parameter(torch.randn(e, args.butterfly_in, pad(d) // 2) * 0.5)
        self.phi = torch.nn.Parameter(torch.randn(e, args.butterfly_out, pad(f) // 2) * 0.5)

    def forward(self, x):
        w1 = self.w1_codes.to(self.w1_scale.dtype) * self.w1_scale
        x = ops.butterfly(x, self.theta)
        x = F.gelu(F.linear(x, w1, self.w1_bias))
        x = ops.butterfly(x, self.phi)
        return torch.matmul(x, self.w2)


class DroplessMoE(torch.nn.Module):

    def __init__(self, args):
        super().__init__()
        self.args = args
        self.router = LearnedRouter(args)
        self.mlp = TernaryMLP(args)

    def indices_and_bins(self, top_expert):
        bin_ids, indices = ops.sort(top_expert)
        tokens_per_expert = ops.histogram(top_expert, self.args.moe_num_experts)
        bins = ops.inclusive_cumsum(tokens_per_expert)
        return indices, bin_ids, bins, tokens_per_expert

    def forward(self, x):
        shape, k, e = x.shape, self.args.moe_top_k, self.args.moe_num_experts
        x = x.reshape(-1, shape[-1])
        expert_weights, top_experts = self.router(x)
        indices, bin_ids, bins, tokens_per_expert = self.indices_and_bins(top_experts.flatten())
        capacity = int(tokens_per_expert.max())
        slot = torch.arange(indices.numel(), device=x.device) - (bins - tokens_per_expert)[bin_ids]
        h = ops.binned_gather(x, bin_ids, slot, indices, e, capacity, k)
        h = self.mlp(h)
        out = ops.binned_scatter(h, bin_ids, slot, indices, expert_weights, x.shape[0], k)
        return out.view(shape)


class SetBlock(torch.nn.Module):

    def __init__(self, args):
        super().__init__()
        self.h = args.num_heads
        self.norm_q = torch.nn.LayerNorm(args.hidden_size)
        self.norm_f = torch.nn.LayerNorm(args.hidden_size)
        self.q = torch.nn.Linear(args.hidden_size, args.hidden_size)
        self.kv = torch.nn.Linear(args.hidden_size, 2 * args.hidden_size)
        self.o = torch.nn.Linear(args.hidden_size, args.hidden_size)
        self.ffn = DroplessMoE(args)

    def forward(self, x):
        b, n, d = x.shape
        y = self.norm_q(x)
        q = self.q(y).view(b, n, self.h, -1).transpose(1, 2)
        k, v = (t.view(b, n, self.h, -1).transpose(1, 2) for t in self.kv(y).chunk(2, -1))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + self.o(y)
        return x + self.ffn(self.norm_f(x))


class PointClassifier(torch.nn.Module):

    def __init__(self, args):
        super().__init__()
        d = args.hidden_size
        self.lift = torch.nn.Sequential(torch.nn.Linear(3, d), torch.nn.ReLU(), torch.nn.Linear(d, d))
        self.blocks = torch.nn.ModuleList(SetBlock(args) for _ in range(args.num_layers))
        self.norm = torch.nn.LayerNorm(d)
        self.head = torch.nn.Linear(2 * d, args.num_classes)

    def forward(self, xyz):
        x = self.lift(xyz - xyz.mean(1, keepdim=True))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(torch.cat([x.amax(1), x.mean(1)], -1))


def make():
    torch.manual_seed(24)
    net = PointClassifier(Arguments())
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, torch.nn.LayerNorm):
                m.weight.uniform_(0.7, 1.3)
                m.bias.normal_(0, 0.1)
            elif isinstance(m, torch.nn.Linear) and m.bias is not None:
                m.bias.normal_(0, 0.1)
        for b in net.blocks:
            b.ffn.router.layer.weight.normal_(0, 0.7)
        net.lift[0].weight.normal_(0, 1.0)
        net.lift[2].weight.normal_(0, 0.4)
    return net.eval(), (torch.randn(2, 30, 3),)
