"""Small vision models as people write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class SwinBlock(nn.Module):
    """Shifted windows with a table of relative positions, then patches merged."""

    def __init__(self, size: int = 8, window: int = 4, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.size, self.window, self.heads, self.shift = size, window, heads, window // 2
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        axes = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        place = torch.stack(axes).flatten(1)
        relative = (place[:, :, None] - place[:, None, :]).permute(1, 2, 0) + window - 1
        relative[:, :, 0] *= 2 * window - 1
        self.register_buffer("relative", relative.sum(-1))
        image, number = torch.zeros(1, size, size, 1), 0
        for rows in (slice(0, -4), slice(-4, -2), slice(-2, None)):
            for columns in (slice(0, -4), slice(-4, -2), slice(-2, None)):
                image[:, rows, columns] = number
                number += 1
        regions = self.parted(image).squeeze(-1)
        apart = regions.unsqueeze(1) - regions.unsqueeze(2)
        mask = apart.masked_fill(apart != 0, -100.0).masked_fill(apart == 0, 0.0)
        self.register_buffer("mask", mask)

    def parted(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        n = self.window
        x = x.view(b, h // n, n, w // n, n, c)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, n * n, c)

    def forward(self, x: Tensor) -> Tensor:  # x: [B, H * W, C]
        b, _, c = x.shape
        size, n = self.size, self.window
        y = self.norm(x).view(b, size, size, c)
        y = self.parted(torch.roll(y, shifts=(-self.shift, -self.shift), dims=(1, 2)))
        q, k, v = (
            self.qkv(y).reshape(-1, n * n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        )
        scores = q * (c // self.heads) ** -0.5 @ k.transpose(-2, -1)
        bias = self.table[self.relative.view(-1)].view(n * n, n * n, -1).permute(2, 0, 1)
        scores = scores + bias.contiguous().unsqueeze(0)
        scores = scores.view(b, -1, self.heads, n * n, n * n) + self.mask[None, :, None]
        y = scores.view(-1, self.heads, n * n, n * n).softmax(-1) @ v
        y = self.proj(y.transpose(1, 2).reshape(-1, n * n, c))
        y = (
            y.view(b, size // n, size // n, n, n, c)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(b, size, size, c)
        )
        y = torch.roll(y, shifts=(self.shift, self.shift), dims=(1, 2))
        x = x.view(b, size, size, c) + y
        parts = [x[:, i::2, j::2, :] for j in (0, 1) for i in (0, 1)]
        return self.reduce(torch.cat(parts, -1).view(b, -1, 4 * c))


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of an image, written out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.rand(channels)),
            nn.Parameter(torch.rand(channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXt(nn.Module):
    """Depthwise 7 x 7, channels last, global response normalisation, a scaled residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 2, stride=2), LayerNorm2d(8))
        self.dwconv, self.norm = nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.gamma, self.beta = nn.Parameter(torch.rand(16)), nn.Parameter(torch.rand(16))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.gelu(self.up(self.norm(self.dwconv(x).permute(0, 2, 3, 1))))
        response = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
        response = response / (response.mean(dim=-1, keepdim=True) + 1e-6)
        y = self.down(self.gamma * (y * response) + self.beta + y).permute(0, 3, 1, 2)
        return self.head((x + 0.1 * y).mean([-2, -1]))


class MobileNet(nn.Module):
    """Inverted residuals: pointwise, depthwise, squeeze and excite, ReLU6 and hard swish."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(
            nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(True)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(12, 12, 3, 2, 1, groups=12, bias=False),
            nn.BatchNorm2d(12),
            nn.Hardswish(True),
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(12, 4, 1),
            nn.SiLU(),
            nn.Conv2d(4, 12, 1),
            nn.Hardsigmoid(),
        )
        self.project = nn.Sequential(nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.expand(x))
        x = x * self.squeeze(x)
        x = self.project(x)
        return torch.flatten(F.adaptive_avg_pool2d(self.shuffle(x), (1, 1)), 1)


class ResNeXt(nn.Module):
    """A residual block of many groups, ceiling-mode pooling, uneven adaptive pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 1), nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1, groups=16, bias=False)
        self.pool, self.head = nn.MaxPool2d(3, 2, ceil_mode=True), nn.Linear(32 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu_()
        y += self.conv2(y)
        y = self.pool(y)
        return self.head(F.adaptive_avg_pool2d(y, 3).view(y.size(0), -1))


class UNet(nn.Module):
    """Down by pooling, up by transposed convolution and bilinear resizing, skips joined."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.LeakyReLU(0.1)
        )
        self.down2 = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.Mish())
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.up2 = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1)
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        up = self.up(second)
        smooth = F.interpolate(second[:, :4], scale_factor=2, mode="bilinear", align_corners=False)
        y = torch.cat([first, up + self.up2(second), smooth], dim=1)
        return self.last(y).softmax(dim=1)


class SuperResolution(nn.Module):
    """Pixel shuffle over PReLU convolutions, added to a resized image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 5, padding=2, padding_mode="reflect"), nn.PReLU(8),
            nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        large = F.interpolate(x, size=(12, 12), mode="bicubic", align_corners=False)
        nearest = F.interpolate(x, scale_factor=2, mode="nearest")
        return torch.clamp(self.body(x) + large + nearest, 0.0, 1.0)


class Perceiver(nn.Module):
    """Learned queries attend to the pixels through nn.MultiheadAttention, with its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(3, 8))
        self.attention = nn.MultiheadAttention(8, 2, kdim=5, vdim=5, batch_first=True)
        self.itself = nn.MultiheadAttention(8, 2, bias=False, add_bias_kv=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        b, _, h, w = image.shape
        y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
        place = torch.stack((y, x)).expand(b, -1, -1, -1)
        pixels = torch.cat([image, place], 1).flatten(2).mT
        latents, weights = self.attention(self.latents.repeat(b, 1, 1), pixels, pixels)
        z = latents.transpose(0, 1)
        z = z + self.itself(z, z, z, need_weights=False)[0]
        return z.transpose(0, 1), weights


class Mixer(nn.Module):
    """Patches by unfold, mixing across tokens and channels, weight and spectral norms."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = parametrizations.weight_norm(nn.Linear(12, 8))
        self.tokens = parametrizations.spectral_norm(nn.Linear(9, 9))
        self.channels = parametrizations.orthogonal(nn.Linear(8, 8))
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        patches = (
            x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        )
        same = F.unfold(x, 2, stride=2).transpose(1, 2)
        x = self.embed(patches + same)
        x = x + self.tokens(x.mT).mT
        x = self.norm(x.mT).mT
        back = F.fold(self.channels(x).mT.repeat(1, 2, 1)[:, :12], (6, 6), 2, stride=2)
        return back - back.mean(dim=(2, 3), keepdim=True)


class Fourier(nn.Module):
    """FNet: mixing by Fourier transforms; a global filter learned in the spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(6, 4, 8, 2) * 0.1)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        spectrum = torch.fft.rfft2(x, dim=(1, 2), norm="ortho")
        spectrum = spectrum * torch.view_as_complex(self.filter)
        x = x + torch.fft.irfft2(spectrum, s=(h, w), dim=(1, 2), norm="ortho")
        x = self.norm(x.view(b, h * w, c))
        return self.head(torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real)


class Detector(nn.Module):
    """Anchors, sorted scores, boxes gathered by index and clamped to tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.register_buffer("edges", torch.tensor([0.25, 0.5, 0.75]))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(image)
        b, _, h, w = y.shape
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="xy")
        y = y.permute(0, 2, 3, 1).reshape(b, -1, 5)
        centre = torch.stack((rows, columns), -1).view(1, -1, 2) + y[..., :2].sigmoid()
        half = F.softplus(y[..., 2:4]) / 2
        boxes = torch.cat((centre - half, centre + half), -1)
        limit = torch.tensor([w, h, w, h], dtype=boxes.dtype)
        boxes = torch.max(torch.min(boxes, limit), torch.zeros_like(limit))
        scores = y[..., 4].sigmoid()
        best, order = scores.topk(3, dim=1)
        boxes = boxes.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
        a, c = boxes[:, :, None], boxes[:, None]
        overlap = (torch.min(a[..., 2:], c[..., 2:]) - torch.max(a[..., :2], c[..., :2])).clamp(0)
        return boxes, overlap.prod(-1), torch.bucketize(best, self.edges), order % w
