"""Routing written by parts: what is one top k, and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.recognise_probe import Probe, fold_constants
from butterflyc.compiler.capture.recognise_routers import with_one_router, with_top_k
from butterflyc.compiler.capture.recognise_signs import is_never_negative
from butterflyc.compiler.ir.graph import Graph
from butterflyc.compiler.ir.interpret import interpret

Routing = Callable[[Tensor], Tensor]


class Routed(nn.Module):
    def __init__(self, routing: Routing) -> None:
        super().__init__()
        self.routing = routing

    def forward(self, x: Tensor) -> Tensor:
        return self.routing(x)


def captured(routing: Routing, x: Tensor) -> Graph:
    return fold_constants(capture(Routed(routing).eval(), (x,)).graph)


def by_masks(scores: Tensor, fill: float) -> Tensor:
    """The numbers of the two largest of a row as one-hot rows, one argmax after the other."""
    first = F.one_hot(scores.argmax(-1), scores.shape[-1])
    second = F.one_hot(scores.masked_fill(first.bool(), fill).argmax(-1), scores.shape[-1])
    return torch.stack([first, second], 1).float()


def by_max(scores: Tensor) -> Tensor:
    values, numbers = scores.max(-1, keepdim=True)
    rest = scores.scatter(-1, numbers, -torch.inf)
    others, seconds = rest.max(-1, keepdim=True)
    table = torch.arange(float(scores.shape[-1]))
    return torch.cat([values, others, table[numbers], table[seconds]], -1)


ONE: dict[str, Routing] = {
    "masked by -inf": lambda x: by_masks(x, -torch.inf),
    "masked by zero": lambda x: by_masks(x.softmax(-1), 0.0),
    "max and scatter": by_max,
}
TWO: dict[str, Routing] = {
    "zero may be the largest": lambda x: by_masks(x, 0.0),
    "the largest is not left out": lambda x: by_masks(x.sigmoid(), 2.0),
}


@pytest.mark.parametrize("name", ONE)
def test_the_best_and_the_best_of_the_rest_are_the_best_two(name: str) -> None:
    """One top_k takes the place of both, and all comes out the same."""
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    graph = with_top_k(captured(ONE[name], x))
    joined = with_one_router(graph)
    assert [int(node["k"]) for node in joined.nodes if node.op == "top_k"] == [2]
    for scale in (1, 5):
        was, now = (interpret(g, scale * x.numpy())[0] for g in (graph, joined))
        np.testing.assert_array_equal(now, was)


@pytest.mark.parametrize("name", TWO)
def test_other_choices_stay_apart(name: str) -> None:
    """Where the second choice may fall on the first expert again, nothing is joined."""
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    joined = with_one_router(with_top_k(captured(TWO[name], x)))
    assert [int(node["k"]) for node in joined.nodes if node.op == "top_k"] == [1, 1]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_best_along_any_axis_is_a_top_k(axis: int) -> None:
    """The largest along an axis, and where it is, become one top_k with that axis last."""

    def best(x: Tensor) -> Tensor:
        values, numbers = x.max(axis, keepdim=True)
        table = torch.arange(10.0)
        return torch.cat([values, table[x.argmax(axis, keepdim=True)], table[numbers]], axis)

    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    graph = captured(best, x)
    changed = with_top_k(graph)
    assert [node.op for node in changed.nodes if node.op in ("argmax", "max", "top_k")] == ["top_k"]
    np.testing.assert_array_equal(interpret(changed, x.numpy())[0], interpret(graph, x.numpy())[0])


NEVER: list[Routing] = [
    lambda x: x.softmax(-1),
    lambda x: x.sigmoid() / (x.exp().sum(-1, keepdim=True) + 1),
    lambda x: torch.where(x > 0, x.abs(), x.relu()).topk(2, -1).values,
    lambda x: x.clamp(min=0.5, max=2.0),
    lambda x: torch.maximum(x, x.abs()),
    lambda x: (x > 1).float() @ torch.ones(6, 2),
]
PERHAPS: list[Routing] = [
    lambda x: x,
    lambda x: x.softmax(-1) - 0.1,
    lambda x: torch.where(x > 0, x, 1.0),
    lambda x: x.clamp(min=-0.5, max=2.0),
    lambda x: (x > 1).float() @ -torch.ones(6, 2),
]


@pytest.mark.parametrize("never", [True, False])
def test_signs_are_known_where_ops_tell_them(never: bool) -> None:
    """What cannot be below zero is known not to be; of all else nothing is said."""
    for function in NEVER if never else PERHAPS:
        graph = captured(function, torch.randn(9, 6))
        assert is_never_negative(Probe(dict(graph.constants)), graph.outputs[0]) is never
