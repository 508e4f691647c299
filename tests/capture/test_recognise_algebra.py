"""Sums that are written in another way: the same values, in the terms of a layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.recognise_algebra import rewritten
from butterflyc.compiler.capture.recognise_probe import fold_constants
from butterflyc.compiler.ir.graph import Graph
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.ir.verify import verify

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


class Applied(nn.Module):
    """A function of rows [5, 8] and two matrices of zeros and ones, no one in the same place."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        w = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
        self.function = function
        self.register_buffer("plus", (w > 0.5).float())
        self.register_buffer("minus", (w < -0.5).float())

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.plus, self.minus)


def captured(function: Function) -> tuple[Graph, Tensor]:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    return fold_constants(capture(Applied(function).eval(), (x,)).graph), x


def halves(x: Tensor, p: Tensor, m: Tensor) -> Tensor:
    up, down = F.linear(x, torch.cat([p, m])).chunk(2, -1)
    return up - down


SAME: dict[str, Function] = {
    "a difference": lambda x, p, m: F.linear(x, p) - F.linear(x, m),
    "a sum": lambda x, p, m: F.linear(x, p) + x @ -m.T,
    "with scales": lambda x, p, m: x @ (0.3 * p).T - x @ (0.3 * m).T,
    "of halves": halves,
    "an interpolation": lambda x, p, m: torch.lerp(x[:, :6], x[:, 2:], x[:, :1]),
    "one matrix for both": lambda x, p, m: torch.cat([x, x.exp()], -1) @ p.repeat(1, 2).T,
    "one matrix, with a bias": lambda x, p, m: F.linear(
        torch.cat([x, x.exp(), x.sin()], -1), p.repeat(1, 3), m[:, 0]
    ),
    "an interpolation by parts": lambda x, p, m: (x[:, 1:] - (a := x[:, :7])) * x[:, 7:] + a,
}
OTHER: dict[str, Function] = {
    "two scales": lambda x, p, m: x @ (0.3 * p).T - x @ (0.2 * m).T,
    "weights of two": lambda x, p, m: x @ p.T + x @ (p + m).T,
    "two matrices": lambda x, p, m: torch.cat([x, x.exp()], -1) @ torch.cat([p, m], 1).T,
    "parts of two sizes": lambda x, p, m: torch.cat([x, x[:, :4]], -1) @ (p[:, [0] * 12]).T,
    "under each other": lambda x, p, m: torch.cat([x, x.exp()]) @ p.T,
    "other rows": lambda x, p, m: F.linear(x, p) - F.linear(x.flip(0), m),
    "with a bias": lambda x, p, m: F.linear(x, p, p[:, 0]) - F.linear(x, m),
    "of channels": lambda x, p, m: p @ x.T[:, :5] - m @ x.T[:, :5],
    "by a number of each channel": lambda x, p, m: torch.lerp(x[:, :6], x[:, 2:], p[:, 0]),
    "from another": lambda x, p, m: x[:, :6] + x[:, :1] * (x[:, 2:] - x[:, 1:7]),
}


@pytest.mark.parametrize("name", SAME)
def test_sums_in_other_terms_have_the_same_values(name: str) -> None:
    """One product takes the place of two, or two terms that of an interpolation."""
    graph, x = captured(SAME[name])
    new = rewritten(graph)
    assert new is not None
    verify(new)
    products = [node for node in new.nodes if node.op in ("linear", "matmul")]
    assert len(products) == (0 if "interpolation" in name else 1)
    was, now = (interpret(each, x.numpy(), precision="f64")[0] for each in (graph, new))
    np.testing.assert_allclose(now, was, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OTHER)
def test_other_sums_stay(name: str) -> None:
    """What makes no ternary matrix, is of other rows, or is no factor of rows is left alone."""
    graph, _ = captured(OTHER[name])
    assert rewritten(graph) is None
