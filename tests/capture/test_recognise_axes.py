"""Axes of inputs in scores: neighbours are told from experts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.recognise_axes import chooses_neighbours

from .agreement import Function, data

WEIGHTS = data(6, 4)
POINTS = data(2, 6, 4)  # as many channels as there are experts, and as points


def attend(x: Tensor) -> Tensor:
    q, k = (x @ WEIGHTS[:4]).unflatten(-1, (2, 2)).movedim(2, 1), x.unflatten(-1, (2, 2))
    return q @ k.movedim(2, 1).mT


NEIGHBOURS: dict[str, Callable[[Tensor], Tensor]] = {
    "distances": lambda x: -torch.cdist(x, x),
    "differences": lambda x: -(x[:, :, None] - x[:, None]).square().sum(-1),
    "of features": lambda x: (f := F.layer_norm(F.relu(x @ WEIGHTS.T), (6,))) @ f.mT,
    "channels first": lambda x: torch.einsum("bcn,bcm->bnm", x.mT, x.mT),
    "convolved": lambda x: (f := F.conv1d(x.mT, WEIGHTS[:, :, None])).mT @ f,
    "attention": attend,
    "some of them": lambda x: torch.cat([x, x], 1) @ x[:, 1:].mT,
}
EXPERTS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: (x @ WEIGHTS.T).softmax(-1),
    "centres": lambda x: -(x[:, :, None] - WEIGHTS).square().sum(-1),
    "cosines": lambda x: F.normalize(x, dim=-1) @ F.normalize(WEIGHTS, dim=-1).T,
    "convolved": lambda x: F.conv1d(x.mT, WEIGHTS[:, :, None]).mT,
    "behind attention": lambda x: ((x @ x.mT).softmax(-1) @ x) @ WEIGHTS.T,
    "as they come": lambda x: x * 2,
    "tokens of experts": lambda x: (x @ WEIGHTS.T).mT,
}


def top(scores: Callable[[Tensor], Tensor]) -> bool:
    graph = capture(Function(lambda x: scores(x).topk(2, -1).values), (POINTS,)).graph
    (top_k,) = (node for node in graph.nodes if node.op == "top_k")
    return chooses_neighbours(top_k)


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_neighbours_are_no_experts(name: str) -> None:
    """Scores in which one axis of an input is there twice choose among its own things."""
    assert top(NEIGHBOURS[name])


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_no_neighbours(name: str) -> None:
    """An axis of weights, or one of scores that are given, is chosen from as of experts."""
    assert not top(EXPERTS[name])
