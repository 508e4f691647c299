"""Sorts that dispatch rows to experts are undone, and leave the graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.sorted_rows import is_order, unsort_rows
from butterflyc.compiler.ir.interpret import interpret

from . import test_export_counts as routing
from .agreement import Function, agree, data, numbers

W = data(4, 6)


@pytest.mark.parametrize(
    "form",
    [
        routing.split_list,
        routing.split_back,
        routing.split_inverse,
        routing.slices_of_each,
        routing.moe_infer,
        routing.moe_infer_ends,
        routing.each_count_alone,
    ],
)
def test_no_sort_is_left(form: Callable[..., Tensor]) -> None:
    """However a model sorts its rows by expert and back, the graph sorts none."""
    graph = capture(routing.Mixture(form), (routing.inputs()[0],)).graph
    assert not any(is_order(node) for node in graph.nodes)


def by_order(x: Tensor, key: Tensor) -> Tensor:
    order = key.argsort()
    return torch.zeros_like(x).index_copy(0, order, (x[order] @ W.mT).tanh() @ W)


def summed(x: Tensor, key: Tensor) -> Tensor:
    order = key.argsort()
    return x[order].exp().sum(0) + x[order].mT @ x[order].cos() @ x[0]


def added_twice(x: Tensor, key: Tensor) -> Tensor:
    order = key.argsort()
    return torch.zeros(4, 6).index_add(0, order // 2, x[order].neg())


@pytest.mark.parametrize("function", [by_order, summed, added_twice])
def test_undone(function: Callable[..., Tensor]) -> None:
    """Rows put back, summed, or added where they belong agree with PyTorch, and are not sorted."""
    graph = agree(Function(function), data(8, 6), numbers(8)).graph
    assert not any(is_order(node) for node in graph.nodes)


def kept(x: Tensor, key: Tensor) -> Tensor:
    return x[key.argsort()].tanh()


def running(x: Tensor, key: Tensor) -> Tensor:
    order = key.argsort()
    return torch.zeros_like(x).index_copy(0, order, x[order].cumsum(0))


def of_two_sorts(x: Tensor, key: Tensor) -> Tensor:
    return x[key.argsort()] + x[x[:, 0].argsort()]


def put_elsewhere(x: Tensor, key: Tensor) -> Tensor:
    return torch.zeros_like(x).index_copy(0, x[:, 0].argsort(), x[key.argsort()])


def with_places(x: Tensor, key: Tensor) -> Tensor:
    order = key.argsort()
    return torch.zeros_like(x).index_copy(0, order, x[order] * torch.arange(8.0)[:, None])


@pytest.mark.parametrize("function", [kept, running, of_two_sorts, put_elsewhere, with_places])
def test_sorts_that_matter(function: Callable[..., Tensor]) -> None:
    """What hangs on the order stays sorted, and agrees with PyTorch on other keys."""
    graph = agree(Function(function), data(8, 6), numbers(8)).graph
    assert any(is_order(node) for node in graph.nodes)
    x, key = data(8, 6, seed=1), torch.randperm(8, generator=torch.Generator().manual_seed(2))
    (got,) = interpret(graph, x.numpy(), key.numpy())
    assert np.allclose(got, function(x, key).numpy(), atol=1e-5)


def of_many_ways(x: Tensor, key: Tensor) -> Tensor:
    for _ in range(60):
        key = key + key % 3
    return torch.zeros(8, 6).index_add(0, key % 8, x)


def test_many_ways_to_an_index_are_walked_once() -> None:
    """Numbers that are reached by 2^60 ways are captured, and agree with PyTorch."""
    agree(Function(of_many_ways), data(8, 6), numbers(8))


def test_nothing_to_do() -> None:
    """A graph without sorts stays as it is."""
    graph = capture(Function(lambda x: x.tanh()), (data(8, 6),)).graph
    assert str(unsort_rows(graph)) == str(graph)
