"""ConvNeXt-ish segmentation net whose 1x1 mixing is a ButterflyMoE over pixels; by a mobile-CV engineer who thinks in grouped convs.

A Givens layer is a 1x1 conv with groups = C/2 (its 2x2 kernels are the rotations), the perfect shuffle is ShuffleNet's channel shuffle.
shuffle     channel_shuffle(groups=2) = interleave the two halves, after the rotation
handedness  B(phi) forward on the output side, B(theta)^T on the input side (reverse order, inverse shuffles)
L           3 in, 5 out; C = 32
router      1x1 conv, sigmoid scores, top-2 of 5 by score, not renormalised
quantiser   W_hat (C x C): gamma = mean|W| per output channel, round_clip
biases      shared bias on W_hat in front of B(phi) (so weighted by the gate)
form        equation 3, no W_down, no inner activation
dispatch    every expert on the whole map, multiplied by its (sparse) gate map; nested ModuleLists, cos/sin baked in buffers
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


class Rotation(nn.Module):
    """C/2 Givens rotations on channels (2j, 2j+1), as a depthwise-by-two pointwise conv."""

    def __init__(self, channels):
        super().__init__()
        self.groups = channels // 2
        angle = torch.randn(self.groups) * 0.5
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def kernel(self, inverse):
        c, s = self.cos, -self.sin if inverse else self.sin
        k = torch.stack([torch.stack([c, -s], dim=1), torch.stack([s, c], dim=1)], dim=1)   # G, out, in
        return k.reshape(2 * self.groups, 2, 1, 1)

    def forward(self, x, inverse=False):
        return F.conv2d(x, self.kernel(inverse), groups=self.groups)


class ChannelShuffle(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.groups = groups

    def forward(self, x):
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ButterflyStack(nn.Module):
    def __init__(self, channels, depth, inverse=False):
        super().__init__()
        self.inverse = inverse
        self.rots = nn.ModuleList([Rotation(channels) for _ in range(depth)])
        self.shuffle = ChannelShuffle(channels // 2 if inverse else 2)

    def forward(self, x):
        if self.inverse:
            for rot in reversed(self.rots):
                x = rot(self.shuffle(x), inverse=True)
        else:
            for rot in self.rots:
                x = self.shuffle(rot(x))
        return x


class TernaryConv1x1(nn.Conv2d):
    def __init__(self, cin, cout):
        super().__init__(cin, cout, 1, bias=True)

    def forward(self, x):
        gamma = self.weight.abs().mean(dim=(1, 2, 3), keepdim=True)
        q = (self.weight / (gamma + 1e-8)).round().clamp(-1, 1) * gamma
        w = self.weight + (q - self.weight).detach()
        return F.conv2d(x, w, self.bias)


class ButterflyExpert(nn.Module):
    def __init__(self, channels, depth_in, depth_out):
        super().__init__()
        self.theta = ButterflyStack(channels, depth_in, inverse=True)
        self.phi = ButterflyStack(channels, depth_out)

    def forward(self, x, shared):
        return self.phi(shared(self.theta(x)))


class PixelMoE(nn.Module):
    def __init__(self, channels, num_experts=5, topk=2, depth_in=3, depth_out=5):
        super().__init__()
        self.topk = topk
        self.gate = nn.Conv2d(channels, num_experts, 1)
        self.shared = TernaryConv1x1(channels, channels)
        self.experts = nn.ModuleList([ButterflyExpert(channels, depth_in, depth_out) for _ in range(num_experts)])

    def forward(self, x):
        score = self.gate(x).sigmoid()
        keep = score.topk(self.topk, dim=1).indices
        gate = score * torch.zeros_like(score).scatter(1, keep, 1.0)
        out = 0
        for i, expert in enumerate(self.experts):
            out = out + gate[:, i:i + 1] * expert(x, self.shared)
        return out


class Block(nn.Module):
    def __init__(self, channels, kernel_size=5):
        super().__init__()
        self.dw = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.GroupNorm(4, channels)
        self.moe = PixelMoE(channels)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x):
        return x + self.scale * F.hardswish(self.moe(self.norm(self.dw(x))))


class MobileSeg(nn.Module):
    def __init__(self, channels=32, classes=4, depth=2):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels // 2, 3, stride=2, padding=1), nn.BatchNorm2d(channels // 2), nn.Hardswish(),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels))
        self.blocks = nn.Sequential(*[Block(channels) for _ in range(depth)])
        self.context = nn.Conv2d(channels, channels, 1)
        self.head = nn.Conv2d(channels, classes, 1)

    def forward(self, img):
        x = self.blocks(self.stem(img))
        ctx = self.context(F.adaptive_avg_pool2d(x, 1)).sigmoid()
        return F.interpolate(self.head(x * ctx), scale_factor=4, mode="bilinear", align_corners=False)


@torch.no_grad()
def fake_checkpoint(net):
    for m in net.modules():
        if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm)):
            m.weight.uniform_(0.6, 1.4)
            m.bias.normal_(0, 0.2)
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.2)
                m.running_var.uniform_(0.5, 1.5)
        elif isinstance(m, nn.Conv2d):
            m.bias.normal_(0, 0.15)
        if isinstance(m, PixelMoE):
            m.gate.weight.normal_(0, 0.4)
        if isinstance(m, Block):
            m.scale.uniform_(0.3, 0.9)


def make():
    torch.manual_seed(21)
    net = MobileSeg()
    fake_checkpoint(net)
    return net.eval(), (torch.randn(2, 3, 24, 20),)
