"""On-device image classifier, written the way Core ML / the Neural Engine likes it: NCHW, 1x1 convolutions, static graph.

Form       W_down . B(phi)^T . GELU( W_hat . B(theta) x + b_up ) + b_down, tanh GELU; d = 32, F = 64.
Rotation   cos / sin baked into buffers at export. The shuffle (interleave the two halves) comes before each rotation,
           so one layer is chunk -> rotate -> stack. The output side is the transpose (un-rotate, then de-interleave). L_in 3, L_out 6.
Quantiser  weights are already ternary: int8 buffers with one float scale per output row, W_up and W_down both.
Biases     b_up shared by the experts before the GELU; b_down added once after the gated sum (W_down is run once, on the sum).
Router     1x1 conv with bias, top-2 of 5, then softmax over the two (masked with -1e4, no topk op in the graph).
Dispatch   dense: unrolled loop over experts, each multiplied by its (mostly zero) gate plane.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class LayerNormANE(nn.Module):
    """Layer norm over the channel axis of (B, C, H, W)."""

    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(1, channels, 1, 1).uniform_(0.7, 1.3))
        self.bias = nn.Parameter(torch.randn(1, channels, 1, 1) * 0.1)

    def forward(self, x):
        x = x - x.mean(dim=1, keepdim=True)
        x = x * torch.rsqrt((x * x).mean(dim=1, keepdim=True) + self.eps)
        return x * self.weight + self.bias


class TernaryConv1x1(nn.Module):
    """1x1 convolution with int8 storage {-1, 0, 1} and a scale per output channel."""

    def __init__(self, in_channels, out_channels, bias=True):
        super().__init__()
        self.register_buffer("q", torch.zeros(out_channels, in_channels, 1, 1, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(out_channels, 1, 1, 1))
        self.register_buffer("bias", torch.zeros(out_channels) if bias else None)

    @torch.no_grad()
    def load_float(self, w, b=None):
        gamma = w.abs().mean(dim=1, keepdim=True)
        self.q.copy_((w / (gamma + 1e-8)).round().clamp(-1, 1)[:, :, None, None])
        self.scale.copy_(gamma[:, :, None, None])
        if b is not None:
            self.bias.copy_(b)

    def forward(self, x):
        return F.conv2d(x, self.q.to(x.dtype) * self.scale, self.bias)


class ButterflyCHW(nn.Module):
    """All experts' rotation planes for one side; runs over the channel axis."""

    def __init__(self, angles, transpose=False):
        super().__init__()
        self.layers = angles.shape[1]
        self.transpose = transpose
        self.register_buffer("cos", angles.double().cos().float()[..., None, None])
        self.register_buffer("sin", angles.double().sin().float()[..., None, None])

    def shuffle_rotate(self, x, c, s):
        B, C, H, W = x.shape
        a, b = x.chunk(2, dim=1)
        return torch.stack((a * c - b * s, a * s + b * c), dim=2).reshape(B, C, H, W)

    def unrotate_unshuffle(self, x, c, s):
        a, b = x[:, 0::2], x[:, 1::2]
        return torch.cat((a * c + b * s, b * c - a * s), dim=1)

    def forward(self, x, expert: int):
        if self.transpose:
            for i in reversed(range(self.layers)):
                x = self.unrotate_unshuffle(x, self.cos[expert, i], self.sin[expert, i])
        else:
            for i in range(self.layers):
                x = self.shuffle_rotate(x, self.cos[expert, i], self.sin[expert, i])
        return x


class MobileButterflyMoE(nn.Module):
    def __init__(self, dim, hidden, experts, layers_in=3, layers_out=6):
        super().__init__()
        self.experts = experts
        self.router = nn.Conv2d(dim, experts, 1)
        self.rot_in = ButterflyCHW(torch.randn(experts, layers_in, dim // 2) * 0.5)
        self.rot_out = ButterflyCHW(torch.randn(experts, layers_out, hidden // 2) * 0.5, transpose=True)
        self.up = TernaryConv1x1(dim, hidden)
        self.down = TernaryConv1x1(hidden, dim)
        self.up.load_float(torch.randn(hidden, dim) / math.sqrt(dim), torch.randn(hidden) * 0.2)
        self.down.load_float(torch.randn(dim, hidden) / math.sqrt(hidden), torch.randn(dim) * 0.2)

    def gates(self, x):
        logits = self.router(x)
        best = logits.amax(dim=1, keepdim=True)
        rest = torch.where(logits >= best, torch.full_like(logits, -1e4), logits)
        second = rest.amax(dim=1, keepdim=True)
        kept = torch.where(logits >= second, logits, torch.full_like(logits, -1e4))
        return torch.softmax(kept, dim=1)

    def forward(self, x):
        planes = self.gates(x).split(1, dim=1)
        acc = None
        for e in range(self.experts):
            h = self.rot_in(x, e)
            h = F.gelu(self.up(h), approximate="tanh")
            h = self.rot_out(h, e) * planes[e]
            acc = h if acc is None else acc + h
        return self.down(acc)


class AttentionANE(nn.Module):
    """Per-head split-einsum attention on (B, C, 1, S)."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.q, self.k, self.v, self.o = (nn.Conv2d(dim, dim, 1) for _ in range(4))

    def forward(self, x):
        B, C, H, W = x.shape
        x = x.reshape(B, C, 1, H * W)
        qs = self.q(x).split(self.head_dim, dim=1)
        ks = self.k(x).transpose(1, 3).split(self.head_dim, dim=3)
        vs = self.v(x).split(self.head_dim, dim=1)
        outs = []
        for q, k, v in zip(qs, ks, vs):
            w = torch.einsum("bchq,bkhc->bkhq", q, k) * self.head_dim ** -0.5
            outs.append(torch.einsum("bkhq,bchk->bchq", w.softmax(dim=1), v))
        return self.o(torch.cat(outs, dim=1)).reshape(B, C, H, W)


class Block(nn.Module):
    def __init__(self, dim, hidden, experts, attention):
        super().__init__()
        self.norm1 = LayerNormANE(dim)
        self.norm2 = LayerNormANE(dim)
        self.mixer = AttentionANE(dim, 4) if attention else nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.moe = MobileButterflyMoE(dim, hidden, experts)

    def forward(self, x):
        x = x + self.mixer(self.norm1(x))
        return x + self.moe(self.norm2(x))


class PocketClassifier(nn.Module):
    def __init__(self, classes=10, dim=32, hidden=64, experts=5):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Hardswish(), nn.Conv2d(16, dim, 3, stride=2, padding=1)
        )
        self.blocks = nn.Sequential(
            Block(dim, hidden, experts, attention=False), Block(dim, hidden, experts, attention=True)
        )
        self.norm = LayerNormANE(dim)
        self.head = nn.Conv2d(dim, classes, 1)

    def forward(self, image):
        x = self.norm(self.blocks(self.stem(image)))
        return self.head(x.mean(dim=(2, 3), keepdim=True)).flatten(1)


def make():
    torch.manual_seed(1607)
    net = PocketClassifier()
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.normal_(m.bias, std=0.1)
    for b in net.blocks:
        nn.init.normal_(b.moe.router.weight, std=0.3)
    return net.eval(), (torch.randn(2, 3, 24, 24),)
