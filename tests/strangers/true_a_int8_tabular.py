"""Tabular regressor (feature tokeniser + attention) as exported from a device image: integer buffers only.

shuffle    : deinterleave, stored as a permutation table; undone first when the transpose is walked
handedness : B(theta)^T on the input side, plain B(phi) on the output side (equation 3)
depth      : L_in = 4 on the padded width 64, L_out = 3 on the padded width 128
router     : top-4 of 12 logits, then softmax over the chosen ones; router bias
quantiser  : weights already ternary, int8 codes with one float scale per output row (W_up) / per tensor (W_down)
biases     : b_up before B(phi), b_down weighted by the gate
form       : W_down . GELU_erf( B(phi) . (W_hat . B(theta)^T x + b_up) ), W_down ternary as well
width      : d = 40 padded to 64, F = 80 padded to 128
dispatch   : angle tables gathered by expert index, all k slots at once as [T, k, width]; angles are int16 binary angles
"""
import math

import torch
from torch import nn

BAM = math.pi / 32768.0          # one binary-angle unit in radians


def ternary_codes(rows, cols):
    return torch.randint(-1, 2, (rows, cols), dtype=torch.int8)


def binary_angles(*shape):
    return torch.round(0.5 * torch.randn(*shape) / BAM).clamp(-32768, 32767).to(torch.int16)


def pad_width(n):
    p = 1
    while p < n:
        p *= 2
    return p


class ButterflyUnit(nn.Module):
    """Angle ROM for all experts of one side."""

    def __init__(self, n_experts, width, n_layers):
        super().__init__()
        self.width = width
        self.padded = pad_width(width)
        self.n_layers = n_layers
        self.register_buffer("rom", binary_angles(n_experts, n_layers, self.padded // 2))
        ar = torch.arange(self.padded)
        perm = torch.cat([ar[0::2], ar[1::2]])
        self.register_buffer("perm", perm)
        self.register_buffer("unperm", torch.argsort(perm))

    def _extend(self, x):
        out = x.new_zeros(*x.shape[:-1], self.padded)
        out[..., : self.width] = x
        return out

    def _trig(self, which, dtype):
        ang = self.rom[which].to(dtype) * BAM            # [T, k, L, padded/2]
        return ang.cos(), ang.sin()

    def forward(self, x, which):
        c, s = self._trig(which, x.dtype)
        x = self._extend(x)
        for l in range(self.n_layers):
            u, v = x[..., 0::2], x[..., 1::2]
            y = torch.empty_like(x)
            y[..., 0::2] = c[..., l, :] * u - s[..., l, :] * v
            y[..., 1::2] = s[..., l, :] * u + c[..., l, :] * v
            x = y.index_select(-1, self.perm)
        return x[..., : self.width]

    def forward_transposed(self, x, which):
        c, s = self._trig(which, x.dtype)
        x = self._extend(x)
        for l in range(self.n_layers - 1, -1, -1):
            x = x.index_select(-1, self.unperm)
            u, v = x[..., 0::2], x[..., 1::2]
            y = torch.empty_like(x)
            y[..., 0::2] = c[..., l, :] * u + s[..., l, :] * v
            y[..., 1::2] = c[..., l, :] * v - s[..., l, :] * u
            x = y
        return x[..., : self.width]


class TernaryMatrix(nn.Module):
    def __init__(self, n_out, n_in, per_row):
        super().__init__()
        self.register_buffer("codes", ternary_codes(n_out, n_in))
        base = 1.2 / math.sqrt(n_in)
        if per_row:
            scale = base * (0.7 + 0.6 * torch.rand(n_out))
        else:
            scale = torch.tensor(base)
        self.register_buffer("scale", scale)

    def forward(self, x):
        acc = x @ self.codes.to(x.dtype).t()             # adds and subtracts only on the device
        return acc * self.scale


class MoEUnit(nn.Module):
    def __init__(self, d=40, f=80, n_experts=12, k=4):
        super().__init__()
        self.k = k
        self.register_buffer("router_w", 0.35 * torch.randn(n_experts, d))
        self.register_buffer("router_b", 0.3 * torch.randn(n_experts))
        self.up = TernaryMatrix(f, d, per_row=True)
        self.register_buffer("b_up", 0.15 * torch.randn(f))
        self.down = TernaryMatrix(d, f, per_row=False)
        self.register_buffer("b_down", 0.15 * torch.randn(d))
        self.rot_in = ButterflyUnit(n_experts, d, 4)
        self.rot_out = ButterflyUnit(n_experts, f, 3)

    def forward(self, x):
        b, n, d = x.shape
        x = x.reshape(b * n, d)
        logits = x @ self.router_w.t() + self.router_b
        top, which = torch.topk(logits, self.k, dim=1)
        gate = torch.softmax(top, dim=1)
        h = x.unsqueeze(1).expand(-1, self.k, -1)
        h = self.rot_in.forward_transposed(h, which)
        h = self.up(h) + self.b_up
        h = self.rot_out(h, which)
        h = 0.5 * h * (1.0 + torch.erf(h * (1.0 / math.sqrt(2.0))))
        h = self.down(h) + self.b_down
        y = (gate.unsqueeze(-1) * h).sum(dim=1)
        return y.reshape(b, n, d)


class Layer(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm_a = nn.LayerNorm(d)
        self.norm_b = nn.LayerNorm(d)
        self.attn = nn.MultiheadAttention(d, 4, batch_first=True)
        self.moe = MoEUnit(d)

    def forward(self, x):
        a = self.norm_a(x)
        x = x + self.attn(a, a, a, need_weights=False)[0]
        return x + self.moe(self.norm_b(x))


class TabularNet(nn.Module):
    def __init__(self, n_num=10, cards=(5, 3, 9, 4), d=40, n_layers=2):
        super().__init__()
        self.num_w = nn.Parameter(torch.randn(n_num, d))
        self.num_b = nn.Parameter(torch.randn(n_num, d) * 0.5)
        offs = torch.tensor([0] + list(cards[:-1])).cumsum(0)
        self.register_buffer("cat_offsets", offs)
        self.cat_table = nn.Embedding(sum(cards), d)
        self.summary = nn.Parameter(torch.randn(d))
        self.layers = nn.ModuleList(Layer(d) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, 2)

    def forward(self, x_num, x_cat):
        num = x_num.unsqueeze(-1) * self.num_w + self.num_b
        cat = self.cat_table(x_cat + self.cat_offsets)
        summary = self.summary.expand(x_num.shape[0], 1, -1)
        x = torch.cat([summary, num, cat], dim=1)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, 0]))


def make():
    torch.manual_seed(31)
    net = TabularNet()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.LayerNorm):
                m.weight.uniform_(0.7, 1.3)
                m.bias.normal_(0, 0.2)
            if isinstance(m, nn.MultiheadAttention):
                m.in_proj_bias.normal_(0, 0.1)
                m.out_proj.bias.normal_(0, 0.1)
        net.head.bias.normal_(0, 0.3)
    x_num = torch.randn(3, 10)
    x_cat = torch.stack([torch.randint(0, c, (3,)) for c in (5, 3, 9, 4)], dim=1)
    return net.eval(), (x_num, x_cat)
