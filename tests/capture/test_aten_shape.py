"""Calls that move, cut, join, reduce and order elements mean what they mean in PyTorch."""

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

# Each on x: [2, 4, 6].
CASES: dict[str, Callable[[Tensor], Any]] = {
    "view": lambda x: x.view(8, 6),
    "reshape": lambda x: x.transpose(0, 1).reshape(4, -1),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(-1, (2, -1)),
    "permute": lambda x: x.permute(2, 0, 1),
    "transpose": lambda x: x.transpose(-1, 0),
    "mT": lambda x: x.mT,
    "t": lambda x: x[0].t(),
    "movedim": lambda x: x.movedim((0, 1), (2, 0)),
    "squeeze": lambda x: x[:1].squeeze(),
    "squeeze_axis": lambda x: x[:1].squeeze(0),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "expand": lambda x: x[:, :1].expand(-1, 5, -1),
    "expand_as": lambda x: x[:1].expand_as(x),
    "repeat": lambda x: x.repeat(2, 1, 3),
    "repeat_more_axes": lambda x: x[0].repeat(2, 3, 1),
    "tile": lambda x: x.tile(2),
    "repeat_interleave": lambda x: x.repeat_interleave(3, dim=1),
    "repeat_interleave_flat": lambda x: x.repeat_interleave(2),
    "repeat_interleave_counts": lambda x: x.repeat_interleave(torch.tensor([1, 0, 2, 3]), dim=1),
    "slice": lambda x: x[:, 1:-1, ::2],
    "slice_empty": lambda x: x[:, 3:1],
    "select": lambda x: x[:, -1],
    "ellipsis": lambda x: x[..., 0],
    "none": lambda x: x[:, None, :, 2],
    "narrow": lambda x: x.narrow(1, 1, 2),
    "split": lambda x: x.split(4, dim=-1),
    "split_sizes": lambda x: x.split([1, 3], dim=1),
    "chunk": lambda x: x.chunk(3, dim=-1),
    "chunk_uneven": lambda x: x.chunk(4, dim=-1),
    "unbind": lambda x: x.unbind(1),
    "tensor_split": lambda x: x.tensor_split(4, dim=2),
    "cat": lambda x: torch.cat([x, x[:, :1], x[:, :0]], dim=1),
    "cat_dtypes": lambda x: torch.cat([x, x > 0]),
    "stack": lambda x: torch.stack([x, x + 1], dim=-1),
    "hstack": lambda x: torch.hstack([x, x]),
    "roll": lambda x: x.roll((1, -2), (0, 2)),
    "roll_flat": lambda x: x.roll(5),
    "flip": lambda x: x.flip(0, 2),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3)),
    "pad_value": lambda x: F.pad(x, (1, 2), value=-1.5),
    "pad_negative": lambda x: F.pad(x, (-1, 2)),
    "pad_reflect": lambda x: F.pad(x, (2, 1), mode="reflect"),
    "pad_replicate": lambda x: F.pad(x, (2, 1), mode="replicate"),
    "pad_circular": lambda x: F.pad(x, (2, 1), mode="circular"),
    "unfold": lambda x: x.unfold(2, 3, 2),
    "tril": lambda x: x.tril(-1),
    "triu": lambda x: x.triu(1),
    "diagonal": lambda x: x.diagonal(1, 1, 2),
    "swapaxes": lambda x: x.swapaxes(0, 1).contiguous(),
    "broadcast_to": lambda x: x[:, :1].broadcast_to(2, 3, 6),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x[None].transpose(1, 2), 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "zeros_like": lambda x: torch.zeros_like(x) + x,
    "new_full": lambda x: x.new_full((3,), 2.0),
    "arange": lambda x: x * torch.arange(6),
    "linspace": lambda x: x * torch.linspace(0, 1, 6),
    "eye": lambda x: x + torch.eye(6)[:4],
    "ones_joined": lambda x: torch.cat([x.new_ones(2, 1, 6), x], dim=1),
    "constant": lambda x: (x, torch.full((2, 3), 7)),
    # Reductions and orders.
    "sum": lambda x: x.sum(),
    "sum_axes": lambda x: x.sum((0, 2), keepdim=True),
    "sum_bool": lambda x: (x > 0).sum(-1),
    "sum_to_dtype": lambda x: x.round().sum(1, dtype=torch.int64),
    "mean": lambda x: x.mean(-1),
    "mean_all": lambda x: x.mean(),
    "amax": lambda x: x.amax((1, 2)),
    "amin": lambda x: x.amin(0, keepdim=True),
    "max_all": lambda x: x.max() - x.min(),
    "max_axis": lambda x: x.max(1),
    "min_axis": lambda x: x.min(-1, keepdim=True),
    "aminmax": lambda x: torch.aminmax(x, dim=1),
    "argmax": lambda x: x.argmax(1),
    "argmax_all": lambda x: x.argmax(),
    "argmin": lambda x: x.argmin(-1, keepdim=True),
    "any": lambda x: (x > 1).any(-1),
    "all": lambda x: (x > -1).all(),
    "prod": lambda x: x.prod(1),
    "var": lambda x: x.var(-1),
    "std_biased": lambda x: x.std(1, unbiased=False, keepdim=True),
    "var_mean": lambda x: torch.var_mean(x, dim=(1, 2)),
    "var_all": lambda x: x.var(),
    "logsumexp": lambda x: x.logsumexp(1),
    "norm": lambda x: x.norm(dim=-1),
    "norm_1": lambda x: torch.linalg.vector_norm(x, 1, dim=(0, 1)),
    "norm_inf": lambda x: torch.linalg.vector_norm(x, float("inf")),
    "normalize": lambda x: F.normalize(x, dim=1),
    "cosine_similarity": lambda x: F.cosine_similarity(x[0], x[1], dim=-1),
    "topk": lambda x: x.topk(3),
    "topk_smallest": lambda x: x.topk(2, dim=1, largest=False),
    "sort": lambda x: x.sort(),
    "sort_descending": lambda x: torch.sort(x, dim=1, descending=True),
    "sort_stable": lambda x: torch.sort(x.round(), stable=True, dim=-1),
    "argsort": lambda x: x.argsort(1, descending=True),
    "argsort_stable": lambda x: torch.argsort(x.round(), stable=True),
    "sort_of_argsort": lambda x: x.argsort().argsort(),
    "cumsum": lambda x: x.cumsum(1),
    "cumsum_of_bool": lambda x: (x > 0).cumsum(-1),
    "one_hot": lambda x: F.one_hot(x.argmax(-1), 6),
    "median_free": lambda x: x.sort(-1).values[..., 3],
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    """A call on one tensor of three axes."""
    agree(Function(CASES[name]), data(2, 4, 6))


@given(st.data())
@settings(max_examples=40)
def test_slices(draw: st.DataObject) -> None:
    """Any slice of any axis, as Python and torch cut it."""
    shape = draw.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    bound = st.none() | st.integers(-8, 8)
    index = tuple(
        slice(draw.draw(bound), draw.draw(bound), draw.draw(st.none() | st.integers(1, 3)))
        for _ in shape
    )
    agree(Function(lambda x: x[index] * 1), data(*shape))


@given(st.permutations(range(4)), st.integers(0, 3), st.integers(1, 4))
@settings(max_examples=25)
def test_order_and_top_k(order: list[int], axis: int, k: int) -> None:
    """Axes in any order, and the largest along any of them."""
    agree(Function(lambda x: x.permute(order).topk(k, dim=axis)), data(4, 5, 6, 4))
