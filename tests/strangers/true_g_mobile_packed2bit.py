"""Phone image classifier with a Butterfly mixture-of-experts channel mixer, written so that it exports with static shapes.

Shuffle:     ShuffleNet channel_shuffle(groups=2), i.e. the two halves are interleaved, after every rotation.
Handedness:  B(theta) on the way in, B(phi) on the way out, none transposed.  L_in = 3, L_out = 2.
Width:       d = 48 and F = 96; channels are zero-padded to 64 / 128 around the whole rotation and cropped afterwards.
Router:      1x1 conv, softmax over all six experts, the two largest kept as they are (no renormalisation).
Quantiser:   done offline; two bits per weight in uint8 buffers, one scale per output row, both W_hat and W_down ternary.
Biases:      shared hidden bias before GELU and shared output bias inside the expert (so weighted by the gate).
Form:        W_down . B(phi) . GELU(W_hat . B(theta) x), erf GELU.
Dispatch:    every expert is computed for every pixel, torch.where zeroes the gates of those not chosen.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


def pack_ternary(weight: torch.Tensor):
    """float [out, in] -> uint8 [out, in / 4] (00 = 0, 01 = +1, 10 = -1, low bits first) and float [out, 1] row scales."""
    scale = weight.abs().mean(dim=1, keepdim=True)
    tern = torch.clamp(torch.round(weight / (scale + 1e-8)), -1, 1).to(torch.int64)
    code = torch.where(tern < 0, torch.full_like(tern, 2), tern)
    code = code.reshape(weight.shape[0], weight.shape[1] // 4, 4)
    packed = code[..., 0] | (code[..., 1] << 2) | (code[..., 2] << 4) | (code[..., 3] << 6)
    return packed.to(torch.uint8), scale


class LayerNorm2d(nn.Module):
    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x):
        mu = x.mean(dim=1, keepdim=True)
        var = (x - mu).pow(2).mean(dim=1, keepdim=True)
        x = (x - mu) * torch.rsqrt(var + self.eps)
        return x * self.weight[None, :, None, None] + self.bias[None, :, None, None]


class PackedTernary(nn.Module):
    """Weight storage only: [out, in] ternary matrix in two-bit codes."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.register_buffer("packed", torch.zeros(out_channels, in_channels // 4, dtype=torch.uint8))
        self.register_buffer("row_scale", torch.ones(out_channels, 1))
        self.register_buffer("shift", torch.tensor([0, 2, 4, 6], dtype=torch.uint8), persistent=False)

    def load_float(self, weight):
        packed, scale = pack_ternary(weight)
        self.packed.copy_(packed)
        self.row_scale.copy_(scale)

    def forward(self):
        code = torch.bitwise_and(torch.bitwise_right_shift(self.packed.unsqueeze(-1), self.shift), 3)
        plus = torch.bitwise_and(code, 1).to(self.row_scale.dtype)
        minus = torch.bitwise_right_shift(code, 1).to(self.row_scale.dtype)
        return (plus - minus).reshape(self.out_channels, self.in_channels) * self.row_scale


class GivensBank(nn.Module):
    """Rotations of all experts at once, on [N, E, C, P]."""

    def __init__(self, experts: int, channels: int, layers: int):
        super().__init__()
        self.channels = channels
        self.width = 1 << (channels - 1).bit_length()
        self.layers = layers
        self.angle = nn.Parameter(torch.zeros(experts, layers, self.width // 2))

    def forward(self, x):
        n, e, c, p = x.shape
        half = self.width // 2
        x = F.pad(x, (0, 0, 0, self.width - self.channels))
        cos = torch.cos(self.angle).unsqueeze(-1)
        sin = torch.sin(self.angle).unsqueeze(-1)
        for i in range(self.layers):
            x = x.reshape(n, e, half, 2, p)
            even, odd = x[:, :, :, 0], x[:, :, :, 1]
            x = torch.stack((cos[:, i] * even - sin[:, i] * odd, sin[:, i] * even + cos[:, i] * odd), dim=3)
            # channel_shuffle, groups = 2
            x = x.reshape(n, e, 2, half, p).transpose(2, 3).reshape(n, e, self.width, p)
        return x[:, :, : self.channels]


class ButterflyMoE2d(nn.Module):
    def __init__(self, channels: int, hidden: int, experts: int = 6, top_k: int = 2, layers=(3, 2)):
        super().__init__()
        self.experts, self.top_k = experts, top_k
        self.router = nn.Conv2d(channels, experts, 1)
        self.rot_in = GivensBank(experts, channels, layers[0])
        self.rot_out = GivensBank(experts, hidden, layers[1])
        self.w_up = PackedTernary(channels, hidden)
        self.w_down = PackedTernary(hidden, channels)
        self.b_up = nn.Parameter(torch.zeros(hidden))
        self.b_down = nn.Parameter(torch.zeros(channels))
        self.act = nn.GELU()

    def forward(self, x):
        n, c, h, w = x.shape
        prob = torch.softmax(self.router(x).flatten(2), dim=1)  # N, E, P
        kth = torch.topk(prob, self.top_k, dim=1).values[:, self.top_k - 1 : self.top_k]
        gate = torch.where(prob >= kth, prob, torch.zeros_like(prob))

        y = x.reshape(n, 1, c, h * w).expand(n, self.experts, c, h * w)
        y = self.rot_in(y)
        y = torch.matmul(self.w_up(), y) + self.b_up[:, None]
        y = self.rot_out(self.act(y))
        y = torch.matmul(self.w_down(), y) + self.b_down[:, None]
        y = (y * gate.unsqueeze(2)).sum(dim=1)
        return y.reshape(n, c, h, w)


class MobileBlock(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.norm1 = LayerNorm2d(channels)
        self.dw = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.pw = nn.Conv2d(channels, channels, 1)
        self.norm2 = LayerNorm2d(channels)
        self.moe = ButterflyMoE2d(channels, hidden)

    def forward(self, x):
        x = x + self.pw(F.hardswish(self.dw(self.norm1(x))))
        x = x + self.moe(self.norm2(x))
        return x


class PhoneNet(nn.Module):
    def __init__(self, classes: int = 11, channels: int = 48, hidden: int = 96, depth: int = 2):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Hardswish(), nn.Conv2d(16, channels, 2, stride=2)
        )
        self.blocks = nn.Sequential(*[MobileBlock(channels, hidden) for _ in range(depth)])
        self.norm = LayerNorm2d(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, image):
        x = self.blocks(self.stem(image))
        x = F.hardswish(self.norm(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def make():
    torch.manual_seed(4107)
    net = PhoneNet()
    for name, p in net.named_parameters():
        if name.endswith("angle"):
            nn.init.normal_(p, 0.0, 0.5)
        elif "norm" in name and name.endswith("weight"):
            nn.init.normal_(p, 1.0, 0.2)
        elif p.dim() == 1:
            nn.init.normal_(p, 0.0, 0.15)
        elif "router" in name or "stem" in name:
            nn.init.normal_(p, 0.0, 0.25)
    for m in net.modules():
        if isinstance(m, PackedTernary):
            m.load_float(torch.randn(m.out_channels, m.in_channels) * m.in_channels**-0.5)
    return net.eval(), (torch.randn(2, 3, 24, 24),)
