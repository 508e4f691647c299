"""Volumetric / video segmentation net on [B, C, T, H, W]: 3D conv stem, depthwise 3D mixing, Butterfly experts on the channels.

Shuffle:     none; FFT-style pairs at distance 1, 2, 4, ... (distance doubles with the layer).
Handedness:  input side B(theta)^T, distances falling, as row vectors: pair @ R;  output side B(phi), distances rising: pair @ R^T.
Depth:       L_in = 4 of 6, L_out = 6 of 6; C = 40 -> 64, padded and stripped once around each rotation.
Router:      linear with bias, sigmoid scores, top-3, scores used as they come (no renormalising).
Quantiser:   fixed threshold, |w| > 0.7 mean|w|, scaled by mean|w| of the tensor.
Form:        equation 3 without W_down: F = C, no GELU; one shared output bias inside the expert, hence weighted by the gate.
Dispatch:    (token, slot) pairs sorted by expert, counted with bincount, torch.split into slabs, one cat and one index_add back.
Rotations:   torch.stack((a, b), dim=-1) @ R with R [n / 2, 2, 2].
"""
import torch
from torch import nn
import torch.nn.functional as F


def rotation_matrices(angles):
    """[L, n / 2] angles -> [L, n / 2, 2, 2] matrices ((c, -s), (s, c))."""
    c, s = torch.cos(angles), torch.sin(angles)
    return torch.stack((torch.stack((c, -s), dim=-1), torch.stack((s, c), dim=-1)), dim=-2)


def turn(x, R, distance):
    """x [t, n]; channels i and i + distance form a pair, each pair (as a row) is multiplied by its matrix."""
    t, n = x.shape
    a, b = x.view(t, n // (2 * distance), 2, distance).unbind(dim=2)
    pair = torch.stack((a, b), dim=-1).view(t, n // 2, 1, 2)
    pair = (pair @ R).view(t, n // (2 * distance), distance, 2)
    return pair.movedim(-1, -2).reshape(t, n)


class FFTRotation(nn.Module):
    def __init__(self, experts, channels, layers, transpose):
        super().__init__()
        self.channels = channels
        self.n = 1
        while self.n < channels:
            self.n *= 2
        self.layers, self.transpose = layers, transpose
        self.angles = nn.Parameter(torch.empty(experts, layers, self.n // 2).normal_(0.0, 0.5))

    def forward(self, x, expert):
        R = rotation_matrices(self.angles[expert])
        x = F.pad(x, (0, self.n - self.channels))
        if self.transpose:
            for l in reversed(range(self.layers)):
                x = turn(x, R[l], 2 ** l)
        else:
            for l in range(self.layers):
                x = turn(x, R[l].transpose(-1, -2), 2 ** l)
        return x[:, : self.channels]


class TernaryMix(nn.Module):
    """The channel matrix all experts share."""

    def __init__(self, channels, threshold=0.7):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels) * (2.0 / channels) ** 0.5)
        self.threshold = threshold

    def forward(self, x):
        scale = self.weight.abs().mean()
        signs = torch.sign(self.weight) * (self.weight.abs() > self.threshold * scale)
        w = scale * signs
        if self.training:
            w = self.weight + (w - self.weight).detach()
        return x @ w.t()


class ButterflyChannelMoE(nn.Module):
    def __init__(self, channels, experts, top_k=3, layers_in=4, layers_out=6):
        super().__init__()
        self.experts, self.top_k = experts, top_k
        self.router = nn.Linear(channels, experts)
        self.mix = TernaryMix(channels)
        self.bias = nn.Parameter(0.2 * torch.randn(channels))
        self.rot_in = FFTRotation(experts, channels, layers_in, transpose=True)
        self.rot_out = FFTRotation(experts, channels, layers_out, transpose=False)

    def forward(self, x):
        """[N, C] -> [N, C]"""
        scores = torch.sigmoid(self.router(x))
        weight, chosen = scores.topk(self.top_k, dim=-1)
        flat = chosen.flatten()
        order = torch.argsort(flat, stable=True)
        voxel = torch.div(order, self.top_k, rounding_mode="floor")
        counts = torch.bincount(flat, minlength=self.experts).tolist()

        slabs = []
        for e, slab in enumerate(torch.split(x[voxel], counts)):
            h = self.rot_in(slab, e)
            h = self.mix(h)
            slabs.append(self.rot_out(h, e) + self.bias)
        y = torch.cat(slabs) * weight.flatten()[order].unsqueeze(-1)
        return torch.zeros_like(x).index_add(0, voxel, y)


class VolumeBlock(nn.Module):
    def __init__(self, channels, experts):
        super().__init__()
        self.gn = nn.GroupNorm(4, channels)
        self.dw = nn.Conv3d(channels, channels, 3, padding=1, groups=channels)
        self.pw = nn.Conv3d(channels, channels, 1)
        self.ln = nn.LayerNorm(channels)
        self.moe = ButterflyChannelMoE(channels, experts)

    def forward(self, x):
        x = x + self.pw(F.silu(self.dw(self.gn(x))))
        v = self.ln(x.movedim(1, -1))                       # [B, T, H, W, C]
        y = self.moe(v.flatten(0, 3)).view(v.shape)
        return x + y.movedim(-1, 1)


class VolumeSegmenter(nn.Module):
    def __init__(self, in_channels=2, channels=40, experts=7, depth=3, classes=4, patch=(2, 4, 4)):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(in_channels, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv3d(16, channels, patch, stride=patch),
        )
        self.blocks = nn.ModuleList([VolumeBlock(channels, experts) for _ in range(depth)])
        self.norm = nn.GroupNorm(4, channels)
        self.up = nn.ConvTranspose3d(channels, classes, patch, stride=patch)

    def forward(self, volume):
        x = self.stem(volume)
        for block in self.blocks:
            x = block(x)
        return self.up(F.silu(self.norm(x)))


def make():
    torch.manual_seed(603)
    net = VolumeSegmenter()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, (nn.GroupNorm, nn.LayerNorm)):
                m.weight.uniform_(0.7, 1.4)
                m.bias.normal_(0, 0.2)
            if isinstance(m, ButterflyChannelMoE):
                m.router.weight.normal_(0, 0.25)
                m.router.bias.normal_(0, 0.2)
    return net.eval(), (torch.randn(2, 2, 4, 12, 16),)
