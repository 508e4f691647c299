"""Tiny U-Net denoiser, everything NCHW, with butterfly mixtures of 1x1-conv experts at three resolutions.

shuffle    : interleave the two halves (ShuffleNet channel_shuffle with groups=2), after each rotation
handedness : plain rotation in, transposed Givens sign (clockwise turn) out
depth      : L = 4 in, 3 out at every block
router     : 1x1 conv, raw top-2 logits used directly as gates (Algorithm 2 as printed), router bias
quantiser  : threshold rule, +-gamma where |w| > 0.7 mean|w|, gamma = mean|w| per tensor
biases     : conv bias after W_hat and conv bias after W_down, both weighted by the gate
form       : W_down . B(phi) . GELU_erf( W_hat . B(theta) x ), W_down a float 1x1 conv
width      : 32 -> 64 at full size, 64 -> 96 (padded to 128) in the bottleneck
dispatch   : loop over experts on the whole map, torch.where gate maps of shape [B, 1, H, W]
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


def channel_shuffle(x, groups=2):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ChannelGivens(nn.Module):
    """Orthogonal 1x1 'convolutions', one per expert, acting on dim=1."""

    def __init__(self, experts, channels, depth, clockwise=False):
        super().__init__()
        padded = 1
        while padded < channels:
            padded <<= 1
        self.channels, self.extra, self.depth = channels, padded - channels, depth
        self.sign = -1 if clockwise else 1
        self.angles = nn.ParameterList([nn.Parameter(torch.randn(depth, padded // 2) * 0.5) for _ in range(experts)])

    def forward(self, x, expert):
        if self.extra:
            x = F.pad(x, (0, 0, 0, 0, 0, self.extra))
        for level in range(self.depth):
            a = self.angles[expert][level].view(1, -1, 1, 1)
            cos, sin = a.cos(), self.sign * a.sin()
            p, q = x[:, 0::2], x[:, 1::2]
            x = torch.stack((cos * p - sin * q, sin * p + cos * q), dim=2).flatten(1, 2)
            x = channel_shuffle(x)
        if self.extra:
            x = x[:, : self.channels]
        return x


class TernaryConv1x1(nn.Conv2d):
    def __init__(self, cin, cout):
        super().__init__(cin, cout, kernel_size=1, bias=True)

    def forward(self, x):
        scale = self.weight.abs().mean()
        code = self.weight.sign() * (self.weight.abs() > 0.7 * scale)
        weight = self.weight + (scale * code - self.weight).detach()
        return F.conv2d(x, weight, self.bias)


class ButterflyMixture2d(nn.Module):
    def __init__(self, channels, hidden, experts=4, topk=2):
        super().__init__()
        self.experts, self.topk = experts, topk
        self.router = nn.Conv2d(channels, experts, 1)
        self.spin_in = ChannelGivens(experts, channels, depth=4)
        self.expand = TernaryConv1x1(channels, hidden)
        self.spin_out = ChannelGivens(experts, hidden, depth=3, clockwise=True)
        self.project = nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
        logits = self.router(x)
        gate, which = logits.topk(self.topk, dim=1)
        y = 0
        for e in range(self.experts):
            gate_map = torch.where(which == e, gate, torch.zeros_like(gate)).sum(dim=1, keepdim=True)
            h = F.gelu(self.expand(self.spin_in(x, e)))
            h = self.project(self.spin_out(h, e))
            y = y + gate_map * h
        return y


class ConvMix(nn.Module):
    """GroupNorm -> depthwise conv (space) -> GroupNorm -> butterfly mixture (channels)."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.norm_s = nn.GroupNorm(4, channels)
        self.space = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm_c = nn.GroupNorm(4, channels)
        self.mix = ButterflyMixture2d(channels, hidden)

    def forward(self, x):
        x = x + F.silu(self.space(self.norm_s(x)))
        return x + self.mix(self.norm_c(x))


class UNet(nn.Module):
    def __init__(self, base=32, wide=64):
        super().__init__()
        self.stem = nn.Conv2d(3, base, 3, stride=2, padding=1)
        self.time = nn.Linear(1, base)
        self.enc = ConvMix(base, 64)
        self.down = nn.Conv2d(base, wide, 2, stride=2)
        self.mid = ConvMix(wide, 96)
        self.up = nn.ConvTranspose2d(wide, base, 2, stride=2)
        self.fuse = nn.Conv2d(2 * base, base, 1)
        self.dec = ConvMix(base, 64)
        self.head = nn.Conv2d(base, 3 * 4, 3, padding=1)

    def forward(self, img, sigma):
        x = self.stem(img)
        x = x + self.time(torch.log(sigma)[:, None])[:, :, None, None]
        skip = self.enc(x)
        x = self.mid(self.down(skip))
        x = self.fuse(torch.cat([self.up(x), skip], dim=1))
        x = self.dec(x)
        return img - F.pixel_shuffle(self.head(x), 2)


def make():
    torch.manual_seed(2024)
    net = UNet()
    for m in net.modules():
        if isinstance(m, nn.GroupNorm):
            nn.init.uniform_(m.weight, 0.7, 1.3)
            nn.init.normal_(m.bias, std=0.2)
        if isinstance(m, ButterflyMixture2d):
            nn.init.normal_(m.router.weight, std=0.15)
            nn.init.normal_(m.router.bias, std=0.3)
        elif isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and m.bias is not None:
            nn.init.normal_(m.bias, std=0.1)
    img = torch.randn(1, 3, 16, 16)
    sigma = torch.tensor([0.7])
    return net.eval(), (img, sigma)
