"""Samples of images, levels of quantisation and bins, against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from .agreement import Function, agree, data

IMAGE = data(2, 3, 5, 7)
SCALES, ZEROS = data(6).abs() + 0.01, torch.tensor([0, 3, -2, 1, 0, 5])

CASES: dict[str, Callable[[Tensor], Any]] = {
    "affine": lambda x: F.grid_sample(
        IMAGE * x[0, 0], F.affine_grid(x[:, :6].view(2, 2, 3), [2, 3, 4, 4], False)
    ),
    "levels": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 3, -8, 7),
    "levels by tensors": lambda x: torch.fake_quantize_per_tensor_affine(
        x, torch.tensor(0.2), torch.tensor(1), 0, 15
    ),
    "levels of channels": lambda x: torch.fake_quantize_per_channel_affine(
        x, SCALES, ZEROS.int(), 1, -8, 7
    ),
    "bins": lambda x: torch.histc(x, 5, -1.0, 1.0),
    "bins of numbers": lambda x: torch.histc(x.round(), 4, 0, 3),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    """The graph computes what PyTorch does."""
    agree(Function(CASES[name]), data(2, 6))


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["bilinear", "nearest"]),
    st.sampled_from(["zeros", "border"]),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 4),
    st.floats(0.2, 3),
)
def test_samples(
    mode: str, padding: str, align: bool, height: int, width: int, reach: float
) -> None:
    """Places inside, outside and beside the image, of any size, one element too."""

    def sample(image: Tensor, places: Tensor) -> Tensor:
        return F.grid_sample(image, places, mode, padding, align)

    places = reach * data(2, 3, 4, 2, seed=height + 5 * width)
    agree(Function(sample), data(2, 2, height, width), places)
