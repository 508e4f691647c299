"""What is computed row by row is computed before its rows are repeated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.ir.interpret import interpret

from .agreement import Function, agree, data

W, V = data(5, 4), data(6, 4)
ROWS = torch.arange(3).repeat_interleave(2)
TILES = torch.arange(3).repeat(2)
SAMES: list[Callable[[Tensor], Tensor]] = [
    lambda x: (x[ROWS] * 2).tanh(),
    lambda x: x[TILES] @ W.mT,
    lambda x: torch.stack([x[ROWS][:, 0::2], x[ROWS][:, 1::2]], -1).flatten(1),
    lambda x: torch.cat([x[ROWS], x[ROWS].sum(1, keepdim=True)], 1).softmax(-1),
    lambda x: x[ROWS].unflatten(1, (2, 2)).permute(1, 0, 2).neg(),
]
OTHERS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x[ROWS] + V,  # each copy has a number of its own
    lambda x: x[ROWS] * x[TILES],  # other rows
    lambda x: x[ROWS].cumsum(0),
    lambda x: x[ROWS].sum(0),
    lambda x: x[ROWS].reshape(3, 2, 4).tanh(),
    lambda x: x[ROWS[:2]].tanh(),  # fewer rows than there are
    lambda x: x[ROWS].softmax(0),
    lambda x: torch.cat([x[ROWS], x[ROWS] * 2]).tanh(),  # more rows than the index has
    lambda x: torch.cat([x[ROWS], x[ROWS] * 2], -2).tanh(),
]


@pytest.mark.parametrize("function", SAMES)
def test_repetition_comes_last(function: Callable[[Tensor], Tensor]) -> None:
    """The one take of rows stands at the end, and the numbers are the same."""
    graph = agree(Function(function), data(3, 4)).graph
    takes = [node for node in graph.nodes if node.op == "take"]
    assert takes == list(graph.outputs)
    sizes = {node.type.size for node in graph.nodes if node.op not in ("constant", "take")}
    assert max(sizes) <= 15


@pytest.mark.parametrize("function", OTHERS)
def test_what_tells_copies_apart_stays(function: Callable[[Tensor], Tensor]) -> None:
    """Where copies of a row differ, or rows mix, the graph still computes what PyTorch does."""
    agree(Function(function), data(3, 4))


def test_a_repetition_by_one_goes() -> None:
    """Rows taken in their order, each once, are the rows."""
    x = data(3, 4)
    graph = capture(Function(lambda x: x[torch.arange(3)] * 2), (x,)).graph
    assert {node.op for node in graph.nodes} == {"input", "constant", "mul"}
    np.testing.assert_array_equal(interpret(graph, x.numpy())[0], (x * 2).numpy())
