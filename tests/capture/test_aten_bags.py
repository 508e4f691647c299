"""Bags of rows mean what they mean in PyTorch, whatever their sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from .agreement import Function, agree, data, numbers

TABLE = data(7, 4)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 2])
def test_bags_of_one_size(mode: str, padding: int | None) -> None:
    """A matrix of numbers is one bag a row; the number that pads adds nothing."""
    bag = nn.EmbeddingBag(7, 4, mode=mode, padding_idx=padding)
    index = torch.tensor([[1, 2, 0], [2, 2, 2], [6, 2, 6]])
    agree(bag.eval(), index)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=5),
    st.sampled_from(["sum", "mean", "max"]),
    st.booleans(),
    st.sampled_from([None, 0]),
    st.booleans(),
)
def test_bags_of_any_size(
    sizes: list[int], mode: str, with_end: bool, padding: int | None, computed: bool
) -> None:
    """Bags between offsets, empty ones too, agree, whether the offsets are constant or not."""
    ends = torch.tensor(sizes).cumsum(0)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), ends[: None if with_end else -1]])

    def bags(index: Tensor, offsets: Tensor = offsets) -> Tensor:
        return F.embedding_bag(
            index, TABLE, offsets, mode=mode, include_last_offset=with_end, padding_idx=padding
        )

    index = numbers(max(1, int(ends[-1])), below=7)
    if int(ends[-1]):
        agree(Function(bags), *((index, offsets) if computed else (index,)))


@pytest.mark.parametrize("offsets", [torch.tensor([0, 2, 4]), torch.tensor([0, 1, 4])])
def test_weighted_bags(offsets: Tensor) -> None:
    """Each row may have a factor."""

    def bags(index: Tensor, weights: Tensor) -> Tensor:
        return F.embedding_bag(index, TABLE, offsets, per_sample_weights=weights, mode="sum")

    agree(Function(bags), numbers(6, below=7), data(6))
