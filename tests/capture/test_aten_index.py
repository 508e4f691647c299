"""Reading and writing by index tensors mean what they mean in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from .agreement import Function, agree, data, numbers

I = torch.tensor  # noqa: E741  (an index)
MORE = data(5, 3)
MASK = I([True, False, True, True, False])

# Each on x: [5, 4, 6] and an index i: [3] with numbers below 4.
READS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "first_axis": lambda x, i: x[i],
    "inner_axis": lambda x, i: x[:, i],
    "last_axis": lambda x, i: x[..., i],
    "two_adjacent": lambda x, i: x[i, i.flip(0)],
    "two_inner": lambda x, i: x[:, i, i],
    "two_apart": lambda x, i: x[i, :, i],
    "three": lambda x, i: x[i, i, i],
    "broadcast_indices": lambda x, i: x[i[:, None], i[None, :]],
    "matrix_index": lambda x, i: x[i[:, None] + i // 2],
    "constant_index": lambda x, i: x[:, [3, 0]],
    "constant_and_computed": lambda x, i: x[torch.arange(3), i],
    "negative_constant": lambda x, i: x[I([-1, 1])],
    "negative_computed": lambda x, i: x[i - 4, -1],
    "from_top_k": lambda x, i: x[x[:, 0, 0].topk(2).indices],
    "constant_mask": lambda x, i: x[MASK],
    "constant_mask_inner": lambda x, i: x[:, I([True, False, False, True])],
    "index_select": lambda x, i: x.index_select(1, i),
    "gather": lambda x, i: x.gather(1, i.view(1, 3, 1).expand(2, 3, 6)),
    "gather_last": lambda x, i: x.gather(-1, x.topk(2).indices),
    "take_along_dim": lambda x, i: torch.take_along_dim(x, i.view(1, 3, 1), dim=1),
    "take": lambda x, i: x.take(i * 7),
    "embedding": lambda x, i: F.embedding(i, x[0]),
    "select_all": lambda x, i: x[i][:, i][..., i],
}
# Each on x: [5, 4], i: [3] with distinct numbers below 4, and v: [3, 4].
WRITES: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "put_rows": lambda x, i, v: x.index_put((i,), v),
    "put_scalar": lambda x, i, v: x.index_put((i,), I(2.0)),
    "put_added": lambda x, i, v: x.index_put((i // 2,), v, accumulate=True),
    "put_elements": lambda x, i, v: x.index_put((i, i.flip(0)), v[:, 0]),
    "put_column": lambda x, i, v: _assigned(x, (slice(None), i), v[:, 0].sum()),
    "put_columns": lambda x, i, v: _assigned(x, (slice(None), i), v[0, :3] * x[:, :3]),
    "put_constant": lambda x, i, v: _assigned(x, ([0, 3, 4],), v),
    "put_where": lambda x, i, v: _assigned(x, (x > 0,), 0.5),
    "put_rows_where": lambda x, i, v: _assigned(x, (x[:, 0] > 0,), v[0]),
    "put_added_where": lambda x, i, v: x.index_put((x > 0,), I(1.5), accumulate=True),
    "put_constant_mask": lambda x, i, v: _assigned(x, (MASK,), v),
    "select_row": lambda x, i, v: _assigned(x, (2,), v[0]),
    "index_add": lambda x, i, v: x.index_add(0, i // 2, v),
    "index_add_inner": lambda x, i, v: x.index_add(1, i, MORE, alpha=2),
    "index_copy": lambda x, i, v: x.index_copy(0, i, v),
    "index_fill": lambda x, i, v: x.index_fill(1, i, -1.0),
    "scatter": lambda x, i, v: x.scatter(1, x.topk(2).indices, MORE[:, :2]),
    "scatter_value": lambda x, i, v: torch.zeros_like(x).scatter(1, x.topk(2).indices, 1.0),
    "scatter_gates": lambda x, i, v: torch.zeros_like(x).scatter_(1, *reversed(x.topk(2))),
    "scatter_add": lambda x, i, v: x.scatter_add(1, x.topk(3).indices, MORE),
    "scatter_rows": lambda x, i, v: x.scatter_add(0, (i // 2)[:, None].expand(3, 4), v),
    "scatter_flat": lambda x, i, v: x[:, 0].scatter(0, i, v[:, 0]),
    "sort_and_back": lambda x, i, v: _sorted_and_back(x),
    "masked_fill": lambda x, i, v: x.masked_fill(x > 0, v.mean()),
    "count": lambda x, i, v: F.one_hot(i, 5).sum(0).cumsum(0),
}


def _assigned(x: Tensor, index: Any, value: Any) -> Tensor:
    y = x.clone()
    y[index] = value
    return y


def _sorted_and_back(x: Tensor) -> Tensor:
    order = x[:, 0].argsort()
    return torch.empty_like(x).index_copy(0, order, x[order] * 2)


@pytest.mark.parametrize("name", READS)
def test_reads(name: str) -> None:
    """Elements read by one or several index tensors."""
    agree(Function(READS[name]), data(5, 4, 6), numbers(3, below=4))


@pytest.mark.parametrize("name", WRITES)
def test_writes(name: str) -> None:
    """Elements written by an index tensor or a mask."""
    agree(Function(WRITES[name]), data(5, 4), I([3, 1, 2]), data(3, 4))


@given(st.data())
@settings(max_examples=40)
def test_any_axes_by_index(draw: st.DataObject) -> None:
    """Index tensors on any set of axes, of shapes that broadcast, constant or computed."""
    shape = draw.draw(st.lists(st.integers(2, 5), min_size=1, max_size=4))
    axes = draw.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    forms = st.sampled_from([(1,), (3,), (2, 1), (2, 3)])
    index: list[Any] = [slice(None)] * len(shape)
    computed: list[int] = []
    for axis in sorted(axes):
        index[axis] = numbers(*draw.draw(forms), below=shape[axis], seed=axis)
        if draw.draw(st.booleans()):
            index[axis] = index[axis] - shape[axis]
        computed += [axis] if draw.draw(st.booleans()) else []

    def function(x: Tensor, *given: Tensor) -> Tensor:
        full = list(index)
        for axis, tensor in zip(computed, given, strict=True):
            full[axis] = tensor
        return x[tuple(full)]

    agree(Function(function), data(*shape), *(index[axis] for axis in computed))


def test_what_is_overwritten_is_left_out() -> None:
    """Where later writes cover all that stood before, nothing of it stays in the graph."""
    even = torch.arange(0, 6, 2)

    def forward(x: Tensor) -> Tensor:
        y = x.exp().index_copy(1, even, x[:, :3])
        return y.index_copy(1, even + 1, x[:, 3:])

    assert "exp" not in {node.op for node in agree(Function(forward), data(4, 6)).graph.nodes}
