"""Orders, counts, runs along an axis and reductions by an index mean what they mean in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from .agreement import Function, agree, data, numbers

EDGES = torch.tensor([-1.0, 0.0, 0.5, 1.5])
ROWS = numbers(3, 80, below=7)

# Each on x: [2, 4, 6].
CASES: dict[str, Callable[[Tensor], Any]] = {
    "bucketize": lambda x: torch.bucketize(x, EDGES),
    "bucketize, right, int32": lambda x: torch.bucketize(x, EDGES, right=True, out_int32=True),
    "searchsorted": lambda x: torch.searchsorted(EDGES, x),
    "searchsorted, in rows": lambda x: torch.searchsorted(x.sort(-1).values, x, side="right"),
    "cummax": lambda x: x.round().cummax(-1),
    "cummin": lambda x: x.cummin(1),
    "cummax of integers": lambda x: (x * 9).int().cummax(0).values,
    "cumprod": lambda x: x.cumprod(-1),
    "cumsum of infinities": lambda x: torch.where(x > 0, x, -torch.inf).cumsum(-1),
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "median": lambda x: x.median(-1),
    "median of all": lambda x: x.median(),
    "kthvalue": lambda x: x.kthvalue(2, dim=1, keepdim=True),
    "quantile": lambda x: x.quantile(0.3, dim=-1),
    "norm of order 3": lambda x: x.norm(p=3, dim=-1),
    "norm of order 0": lambda x: torch.linalg.vector_norm(x.relu(), 0, dim=-1),
    "cdist": lambda x: torch.cdist(x, x.flip(1)[:, :2]),
    "einsum of a diagonal": lambda x: torch.einsum("bii,ij->bj", x[..., :4], x[0, :, :3]),
    "einsum of a trace": lambda x: torch.einsum("bii->b", x[..., :4]),
    "scatter_reduce, sum": lambda x: _reduced(x, "sum"),
    "scatter_reduce, mean": lambda x: _reduced(x, "mean"),
    "scatter_reduce, mean alone": lambda x: _reduced(x, "mean", include_self=False),
    "scatter_reduce, amax": lambda x: _reduced(x, "amax"),
    "scatter_reduce, amin alone": lambda x: _reduced(x, "amin", include_self=False),
    "scatter into a part": lambda x: x.scatter(1, x.topk(2).indices.clamp(max=3), x),
    "scatter back": lambda x: x.scatter(-1, x.argsort(-1), x),
    "index_reduce": lambda x: x.index_reduce(1, torch.tensor([1, 1, 2, 0]), x, "amax"),
    "index_add of integers": lambda x: x.long().index_add(0, torch.tensor([1, 1]), x.long()),
    "masked_scatter": lambda x: x.masked_scatter(x > 0, x.flip(0)),
    "masked_scatter of rows": lambda x: x.masked_scatter(x[:, :1] > 0, torch.arange(48.0)),
    "put": lambda x: x.clone().put_(torch.tensor([1, -5]), x[0, 0, :2]),
    "put, added": lambda x: x.clone().put_(torch.tensor([1, 1]), x[0, 0, :2], accumulate=True),
    "diagonal_scatter": lambda x: torch.diagonal_scatter(x, x[..., 0, :4] * 2, 1, 1, 2),
    "embedding_bag": lambda x: F.embedding_bag(
        x.argmax(1) % 3, EDGES[:, None] * x[0, 0], mode="max"
    ),
    "embedding_bag, weighed": lambda x: F.embedding_bag(
        x[0].argsort(-1) % 4, EDGES[:, None], mode="sum", per_sample_weights=x[0]
    ),
}
# Each on x: [3, 80] and on an index of numbers below 7: more than are written one by one.
MANY: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "scatter": lambda x, i: x.scatter(1, (i + 7 * torch.arange(80)) % 80, x.flip(0)),
    "scatter_add": lambda x, i: torch.zeros(3, 7).scatter_add(1, i, x),
    "amax": lambda x, i: torch.zeros(3, 7).scatter_reduce(1, i, x, "amax"),
    "amin of one index": lambda x, i: torch.zeros(3, 7).index_reduce(1, i[0], x, "amin"),
    "mean of rows": lambda x, i: torch.zeros(7, 3).index_reduce(0, i[0], x.T, "mean"),
}


def _reduced(x: Tensor, reduce: str, **options: bool) -> Tensor:
    return torch.ones(2, 4, 7).scatter_reduce(2, x.argsort(-1) // 2, x, reduce, **options)


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    """A call on one tensor."""
    agree(Function(CASES[name]), data(2, 4, 6))


@pytest.mark.parametrize("name", MANY)
def test_many(name: str) -> None:
    """Rows of many elements, written at once."""
    agree(Function(MANY[name]), data(3, 80), ROWS)


def test_bits() -> None:
    """Shifts by known counts and the low bits of integers, negative ones too."""

    def function(x: Tensor) -> tuple[Tensor, ...]:
        places = torch.arange(3)
        return (
            (x >> 2) & 3,
            x << places,
            7 & x,
            (x.unsqueeze(-1) >> places) & 1,
            x * 2654435761 % 97,
        )

    agree(Function(function), numbers(4, 3, below=99) - 50)
