"""Graphs without repetitions and detours: the same values, fewer nodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.recognise_probe import fold_constants
from butterflyc.compiler.capture.recognise_tidy import simpler, tidied
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.ir.verify import verify

from .agreement import Function, data


def in_place(x: Tensor) -> Tensor:
    y = x.clone()
    for row in range(3):
        y[row] = y[row].tanh()
    return y


ALIKE = torch.arange(4.0).expand(3, 4)
UNLIKE = torch.arange(12.0).view(3, 4)

# A function, and how many of an op are left of it.
CASES: dict[str, tuple[Callable[[Tensor], Tensor], str, int]] = {
    "the same twice": (lambda x: x.exp() * x.exp().neg(), "exp", 1),
    "a part of a joint": (lambda x: torch.cat([x, x.exp()])[6:8].tanh(), "concat", 0),
    "a whole part": (lambda x: torch.cat([x, x.exp(), x])[4:8].neg(), "slice", 0),
    "two parts": (lambda x: torch.cat([x, x.exp(), x.neg()])[4:].tanh(), "slice", 0),
    "across a joint": (lambda x: torch.cat([x, x.exp()])[2:7].neg(), "slice", 1),
    "along another axis": (lambda x: torch.cat([x, x.exp()])[:, 1:3].neg(), "slice", 1),
    "every second": (lambda x: torch.cat([x, x.exp()])[0:8:2].neg(), "slice", 1),
    "joints of joints": (lambda x: torch.cat([torch.cat([x, x.exp()]), x.neg()]), "concat", 1),
    "rows in place": (in_place, "concat", 1),
    "rows that are alike": (lambda x: x[:, :1] * ALIKE[x[:, 0].long() % 3], "take", 0),
    "rows that are not": (lambda x: x[:, :1] * UNLIKE[x[:, 0].long() % 3], "take", 1),
    "columns that are alike": (lambda x: x * ALIKE.T[:, x[0].long() % 3], "take", 1),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_the_same_is_one_node(name: str) -> None:
    """Nothing is computed twice or joined to be cut again, and all values are the same."""
    function, op, count = CASES[name]
    x = data(4, 5)
    graph = fold_constants(capture(Function(function), (x,)).graph)
    tidy = tidied(graph)
    verify(tidy)
    assert sum(node.op == op for node in tidy.nodes) == count
    was, now = (interpret(each, x.numpy())[0] for each in (graph, tidy))
    np.testing.assert_array_equal(now, was)


def test_a_tidy_graph_has_no_simpler_form() -> None:
    """Where nothing is there twice and no sum has other terms, there is no other form to try."""
    graph = capture(Function(lambda x: torch.cat([x.exp(), x.neg()])), (data(4, 5),)).graph
    assert simpler(graph) is None
