"""Convolutions, poolings and resizings mean in the graph what they mean in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from .agreement import Function, agree, data

IMAGE = data(2, 4, 6, 7)
W = {n: data(*n) for n in [(4, 3, 2, 2), (4, 3, 3, 3), (32, 2, 3, 3), (8, 1, 3, 3), (4, 3, 4)]}
CUBE = data(4, 4, 2, 3, 2)

# Each on x: [2, 4, 6, 7].
CASES: dict[str, Callable[[Tensor], Any]] = {
    "transposed": lambda x: F.conv_transpose2d(x, W[4, 3, 2, 2], W[4, 3, 4][0, :, 0], stride=2),
    "transposed, padded": lambda x: F.conv_transpose2d(
        x, W[4, 3, 3, 3], stride=2, padding=1, output_padding=1
    ),
    "transposed, in groups": lambda x: F.conv_transpose2d(x, W[4, 3, 3, 3], groups=2),
    "transposed, dilated": lambda x: F.conv_transpose2d(x, W[4, 3, 3, 3], dilation=2, padding=3),
    "transposed, one axis": lambda x: F.conv_transpose1d(x[:, :, 0], W[4, 3, 4], stride=2),
    "transposed, one image": lambda x: F.conv_transpose2d(x[0], W[4, 3, 2, 2]),
    "many groups": lambda x: F.conv2d(
        x.repeat(1, 8, 1, 1), W[32, 2, 3, 3], x[0, 0, 0].repeat(5)[:32], 2, 1, groups=16
    ),
    "two filters a channel": lambda x: F.conv2d(x, W[8, 1, 3, 3], groups=4, padding=1),
    "three axes": lambda x: F.conv3d(
        x[:, :, None].expand(-1, -1, 4, -1, -1), CUBE, W[4, 3, 4][:, 0, 0]
    ),
    "three axes, strided": lambda x: F.conv3d(
        x.view(2, 4, 2, 3, 7),
        CUBE[:, :2],
        stride=(1, 2, 1),
        padding=(1, 0, 1),
        dilation=(2, 1, 2),
        groups=2,
    ),
    "max, ceiling": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "max, dilated": lambda x: F.max_pool2d(x, 2, 1, padding=1, dilation=2),
    "max, not all windows": lambda x: F.max_pool2d(x, (2, 3), (2, 3)),
    "average, uncounted": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "average, ceiling": lambda x: F.avg_pool2d(x, (4, 3), 3, 1, ceil_mode=True),
    "average, by a divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "adaptive, uneven": lambda x: F.adaptive_avg_pool2d(x, (4, 3)),
    "adaptive, one axis": lambda x: F.adaptive_avg_pool1d(x[:, :, 0], 3),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, (4, 1)),
    "adaptive max, one axis": lambda x: F.adaptive_max_pool1d(x[:, :, 0], 3),
    "nearest": lambda x: F.interpolate(x, size=(9, 4)),
    "nearest, by a factor": lambda x: F.interpolate(x, scale_factor=1.4),
    "nearest, exact": lambda x: F.interpolate(x, size=(9, 4), mode="nearest-exact"),
    "nearest, one axis": lambda x: F.interpolate(x[:, :, 0], scale_factor=2.5),
    "linear": lambda x: F.interpolate(x[:, :, 0], size=9, mode="linear"),
    "bilinear": lambda x: F.interpolate(x, size=(12, 9), mode="bilinear"),
    "bilinear, corners": lambda x: F.interpolate(x, (4, 9), mode="bilinear", align_corners=True),
    "bilinear, by a factor": lambda x: F.interpolate(x, scale_factor=1.4, mode="bilinear"),
    "bilinear, smooth": lambda x: F.interpolate(x, (3, 3), mode="bilinear", antialias=True),
    "bicubic": lambda x: F.interpolate(x, scale_factor=(1.5, 2), mode="bicubic"),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    """A call on one image."""
    agree(Function(CASES[name]), IMAGE)


def test_running_statistics() -> None:
    """An instance norm that tracks statistics uses them in eval mode."""
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    norm.train()(IMAGE)
    agree(norm, IMAGE)
