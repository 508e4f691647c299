"""Small models of videos and volumes as people write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VideoBlock(nn.Module):
    """A bottleneck in X3D's manner: pointwise, depthwise in space and time, squeeze and excite."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int) -> None:
        super().__init__()
        steps = (1, stride, stride)
        self.shortcut = nn.Sequential(
            nn.Conv3d(inputs, outputs, 1, stride=steps, bias=False), nn.BatchNorm3d(outputs)
        )
        self.a, self.norm_a = nn.Conv3d(inputs, hidden, 1, bias=False), nn.BatchNorm3d(hidden)
        self.b = nn.Conv3d(hidden, hidden, 3, stride=steps, padding=1, groups=hidden, bias=False)
        self.norm_b = nn.BatchNorm3d(hidden)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool3d((1, 1, 1)), nn.Conv3d(hidden, 4, 1), nn.ReLU(),
            nn.Conv3d(4, hidden, 1), nn.Sigmoid(),
        )  # fmt: skip
        self.c, self.norm_c = nn.Conv3d(hidden, outputs, 1, bias=False), nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_b(self.b(F.relu(self.norm_a(self.a(x)), inplace=True)))
        y = self.norm_c(self.c(F.silu(y * self.squeeze(y))))
        return F.relu(y + self.shortcut(x))


class VideoNet(nn.Module):
    """A stem of two axes and of one, bottlenecks, poolings, frames scored and averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 6, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False),
            nn.Conv3d(6, 6, (5, 1, 1), padding=(2, 0, 0), groups=6, bias=False),
            nn.BatchNorm3d(6), nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        )  # fmt: skip
        self.blocks = nn.Sequential(VideoBlock(6, 8, 6, 1), VideoBlock(6, 10, 8, 2))
        self.pool, self.drop = nn.AvgPool3d((2, 2, 2), stride=1), nn.Dropout3d(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, clip: Tensor) -> Tensor:  # clip: [B, 3, T, H, W]
        x = self.drop(self.pool(self.blocks(self.stem(clip))))
        scores = self.head(x.permute(0, 2, 3, 4, 1)).softmax(-1)
        return scores.mean(dim=(1, 2, 3))


class VolumeNet(nn.Module):
    """A U-Net over three axes: up by transposed convolution and by trilinear resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1, padding_mode="replicate"),
            nn.InstanceNorm3d(4, affine=True), nn.LeakyReLU(0.1),
        )  # fmt: skip
        self.second = nn.Sequential(
            nn.Conv3d(4, 8, 3, padding="same", dilation=2), nn.GroupNorm(4, 8), nn.ELU()
        )
        self.up = nn.ConvTranspose3d(8, 4, 2, stride=2)
        self.wide = nn.ConvTranspose3d(8, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.last = nn.Conv3d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.first(x)
        low = self.second(F.max_pool3d(high, 2))
        smooth = F.interpolate(low[:, :4], high.shape[2:], mode="trilinear", align_corners=False)
        y = torch.cat([high, self.up(low) + self.wide(low), smooth], dim=1)
        return self.last(y).softmax(dim=1)


class Tubelets(nn.Module):
    """A video transformer's tokens: patches of several frames, then factorised attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4))
        self.place = nn.Parameter(torch.randn(1, 8, 2, 2, 2) * 0.1)
        self.space = nn.MultiheadAttention(8, 2, batch_first=True)
        self.time = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.embed(clip) + self.place
        b, c, t, h, w = x.shape
        x = x.permute(0, 2, 3, 4, 1).reshape(b * t, h * w, c)
        x = x + self.space(x, x, x, need_weights=False)[0]
        x = x.view(b, t, h * w, c).transpose(1, 2).reshape(b * h * w, t, c)
        x = x + self.time(x, x, x, need_weights=False)[0]
        return self.norm(x).view(b, h * w, t, c).mean(dim=(1, 2))
