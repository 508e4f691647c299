"""Calls on volumes and videos mean in the graph what they mean in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from butterflyc.compiler.capture import aten_conv

from .agreement import Function, agree, agree_in_double, data

VOLUME = data(2, 4, 5, 6, 7)
FILTERS, TURNED = data(6, 4, 2, 3, 3), data(4, 3, 2, 2, 2)

# Modules on a batch of volumes [2, 4, 5, 6, 7].
MODULES: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv3d(4, 6, 3, padding=1),
    "conv, stem": lambda: nn.Conv3d(4, 6, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2)),
    "conv, pointwise": lambda: nn.Conv3d(4, 6, 1),
    "conv, pointwise, strided": lambda: nn.Conv3d(4, 6, 1, stride=(1, 2, 3), padding=(0, 1, 2)),
    "conv, tubelets": lambda: nn.Conv3d(4, 6, (2, 3, 3), stride=(2, 3, 3), bias=False),
    "conv, of time": lambda: nn.Conv3d(4, 6, (3, 1, 1), stride=(2, 2, 1), padding=(1, 0, 0)),
    "conv, of space": lambda: nn.Conv3d(4, 6, (1, 3, 3), stride=2, padding=(1, 1, 0)),
    "conv, of rows": lambda: nn.Conv3d(4, 6, (1, 1, 3), dilation=2, padding=1),
    "conv, dilated": lambda: nn.Conv3d(4, 6, 2, dilation=(2, 3, 1)),
    "conv, groups": lambda: nn.Conv3d(4, 6, (3, 2, 3), groups=2, stride=2, padding=1),
    "conv, depthwise": lambda: nn.Conv3d(4, 4, 3, groups=4, padding=1, stride=(1, 2, 2)),
    "conv, depthwise, dilated": lambda: nn.Conv3d(4, 4, 2, groups=4, dilation=(1, 2, 3)),
    "conv, two filters a channel": lambda: nn.Conv3d(4, 8, 3, groups=4),
    "conv, same": lambda: nn.Conv3d(4, 6, (3, 2, 4), padding="same", dilation=(2, 1, 1)),
    "conv, valid": lambda: nn.Conv3d(4, 6, 3, padding="valid"),
    "conv, reflect": lambda: nn.Conv3d(4, 6, 3, padding=1, padding_mode="reflect"),
    "conv, replicate": lambda: nn.Conv3d(4, 6, 3, padding=1, padding_mode="replicate"),
    "conv, circular": lambda: nn.Conv3d(4, 6, 3, padding=1, padding_mode="circular"),
    "transposed": lambda: nn.ConvTranspose3d(4, 6, 3, stride=2, padding=1, output_padding=1),
    "transposed, apart": lambda: nn.ConvTranspose3d(4, 6, (1, 2, 3), stride=(1, 2, 3)),
    "transposed, groups": lambda: nn.ConvTranspose3d(4, 6, 2, groups=2, dilation=(2, 1, 2)),
    "transposed, depthwise": lambda: nn.ConvTranspose3d(4, 4, 2, stride=(2, 1, 1), groups=4),
    "batch norm": lambda: _used(nn.BatchNorm3d(4)),
    "batch norm of batch": lambda: nn.BatchNorm3d(4, track_running_stats=False),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "instance norm": lambda: nn.InstanceNorm3d(4, affine=True),
    "instance norm, tracked": lambda: _used(nn.InstanceNorm3d(4, track_running_stats=True)),
    "layer norm": lambda: nn.LayerNorm((4, 5, 6, 7)),
    "response norm": lambda: nn.LocalResponseNorm(2),
    "max": lambda: nn.MaxPool3d(2),
    "max, padded": lambda: nn.MaxPool3d(3, stride=(2, 1, 2), padding=1),
    "max, of space": lambda: nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
    "max, ceiling": lambda: nn.MaxPool3d(2, dilation=(1, 2, 3), ceil_mode=True),
    "average": lambda: nn.AvgPool3d((2, 3, 3)),
    "average, padded": lambda: nn.AvgPool3d(3, stride=2, padding=1),
    "average, uncounted": lambda: nn.AvgPool3d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "average, by a divisor": lambda: nn.AvgPool3d(2, divisor_override=3),
    "global": lambda: nn.AdaptiveAvgPool3d(1),
    "adaptive": lambda: nn.AdaptiveAvgPool3d((2, 4, 3)),
    "adaptive, some axes": lambda: nn.AdaptiveAvgPool3d((None, 1, 1)),
    "adaptive max": lambda: nn.AdaptiveMaxPool3d((2, 1, 3)),
    "power": lambda: nn.LPPool3d(2, 2),
    "dropout": lambda: nn.Dropout3d(),
    "alpha dropout": lambda: nn.FeatureAlphaDropout(),
    "upsample": lambda: nn.Upsample(scale_factor=2),
    "upsample, trilinear": lambda: nn.Upsample(scale_factor=(1, 2, 1.5), mode="trilinear"),
    "channel shuffle": lambda: nn.ChannelShuffle(2),
    "pad, zeros": lambda: nn.ZeroPad3d((1, 0, 2, 1, 0, -1)),
    "pad, reflect": lambda: nn.ReflectionPad3d((1, 2, 0, 1, 2, 0)),
    "pad, replicate": lambda: nn.ReplicationPad3d((1, 2, 0, 1, 1, 1)),
    "pad, circular": lambda: nn.CircularPad3d(1),
}

# Each on x: [2, 4, 5, 6, 7].
CASES: dict[str, Callable[[Tensor], Any]] = {
    "conv, one volume": lambda x: F.conv3d(x[0], FILTERS, padding=1),
    "conv, computed": lambda x: F.conv3d(x, x[:1, :, :2, :3, :3] * 2, stride=(2, 1, 1)),
    "conv, computed, dilated": lambda x: F.conv3d(x, x[:, :, :2, :3, :3] * 2, dilation=(1, 2, 3)),
    "conv, two axes, computed, dilated": lambda x: F.conv2d(
        x[:, :, 0], x[:, :2, 0, :2, :2], groups=2, dilation=2
    ),
    "conv, depthwise, computed": lambda x: F.conv3d(x, x[0, :, None, :2, :2, :2], groups=4),
    "transposed, one volume": lambda x: F.conv_transpose3d(x[0], TURNED),
    "transposed, apart, one volume": lambda x: F.conv_transpose3d(
        x[0], TURNED, TURNED[0, :, 0, 0, 0], stride=2
    ),
    "max, one volume": lambda x: F.max_pool3d(x[0], 2),
    "max, one axis": lambda x: F.max_pool1d(x[:, :, 0, 0], 3, 2, 1),
    "max, of whole numbers": lambda x: F.max_pool2d((9 * x[:, :, 0]).long(), 3, 1, 1),
    "average, one axis": lambda x: F.avg_pool1d(x[:, :, 0, 0], 3, 2, 1),
    "nearest": lambda x: F.interpolate(x, size=(3, 9, 4)),
    "nearest, by factors": lambda x: F.interpolate(x, scale_factor=(1, 1.4, 2.5)),
    "nearest, exact": lambda x: F.interpolate(x, size=(3, 9, 4), mode="nearest-exact"),
    "trilinear": lambda x: F.interpolate(x, size=(3, 9, 4), mode="trilinear"),
    "trilinear, corners": lambda x: F.interpolate(
        x, size=(5, 9, 14), mode="trilinear", align_corners=True
    ),
    "area": lambda x: F.interpolate(x, size=(2, 3, 4), mode="area"),
    "pixel shuffle": lambda x: F.pixel_shuffle(x.movedim(1, 2), 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x[..., :6], 2),
    "windows": lambda x: x.unfold(2, 3, 1).unfold(3, 2, 2).sum((-1, -2)),
}


def _used(norm: Any) -> nn.Module:
    """A norm that has seen a batch."""
    norm.train()(VOLUME)
    return norm


@pytest.mark.parametrize("name", MODULES)
def test_module(name: str) -> None:
    """A module on a batch of volumes."""
    torch.manual_seed(0)
    agree(MODULES[name](), VOLUME)


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    """A call on volumes."""
    agree(Function(CASES[name]), VOLUME)


def test_in_double() -> None:
    """Computed in double precision, a convolution and PyTorch's agree to round-off."""
    torch.manual_seed(0)
    agree_in_double(nn.Conv3d(4, 6, 3, stride=2, padding=1, dilation=(1, 2, 1), groups=2), VOLUME)


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith(("conv", "trans"))])
def test_too_many_windows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution whose windows would take too much memory is one over two axes."""
    monkeypatch.setattr(aten_conv, "_MOST_ELEMENTS", 0)
    torch.manual_seed(0)
    agree(MODULES[name](), VOLUME)


@pytest.mark.parametrize("size", [1, 3, (3, 1, 1), (1, 3, 3), (3, 1, 3)])
def test_one_product(size: Any) -> None:
    """A convolution over three axes without groups is one product: no sum over layers."""
    torch.manual_seed(0)
    graph = agree(nn.Conv3d(4, 6, size, padding="same"), VOLUME).graph
    ops = [node.op for node in graph.nodes]
    assert ops.count("conv2d") == 1
    assert "add" not in ops


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """Any convolution over one to three axes, forward or transposed, and a shape it takes."""
    axes, turned = draw(st.integers(1, 3)), draw(st.booleans())
    groups = draw(st.sampled_from((1, 1, 2, 3, 9)))
    widths = [groups * draw(st.integers(1, 2)) for _ in range(2)]

    def some(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(axes))

    sizes, stride, dilation, padding = some(1, 3), some(1, 3), some(1, 2), some(0, 2)
    options: dict[str, Any] = {"groups": groups, "bias": draw(st.booleans()), "dilation": dilation}
    options |= {"stride": stride, "padding": padding}
    if turned:
        limits = (max(s, d) - 1 for s, d in zip(stride, dilation, strict=True))
        options["output_padding"] = tuple(draw(st.integers(0, n)) for n in limits)
    elif draw(st.booleans()):
        options["padding_mode"] = draw(st.sampled_from(("replicate", "circular", "reflect")))
    name = f"Conv{'Transpose' * turned}{axes}d"
    shape = (draw(st.integers(1, 2)), widths[0], *some(5, 7))
    torch.manual_seed(0)
    return getattr(nn, name)(*widths, sizes, **options), shape


@given(convolutions())
@settings(max_examples=60)
def test_any_convolution(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    """Any sizes, strides, paddings, dilations and groups of a convolution."""
    module, shape = case
    agree(module, data(*shape))


@st.composite
def poolings(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """Any pooling over one to three axes, and a shape it takes."""
    axes, largest = draw(st.integers(1, 3)), draw(st.booleans())

    def some(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(axes))

    sizes, stride, ceiling = some(1, 3), some(1, 3), draw(st.booleans())
    options: dict[str, Any] = {"stride": stride, "ceil_mode": ceiling}
    options["padding"] = tuple(draw(st.integers(0, n // 2)) for n in sizes)
    if largest:
        options["dilation"] = some(1, 2)
    else:
        options["count_include_pad"] = draw(st.booleans())
    shape = (2, draw(st.integers(1, 3)), *some(5, 8))
    return getattr(nn, f"{'Max' if largest else 'Avg'}Pool{axes}d")(sizes, **options), shape


@given(poolings())
@settings(max_examples=40)
def test_any_pooling(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    """Any sizes, strides, paddings, dilations and rounding of a pooling."""
    module, shape = case
    agree(module, data(*shape))
