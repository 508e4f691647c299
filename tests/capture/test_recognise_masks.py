"""Masks that choose experts by their scores, and masks that only look like it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.recognise import recognise
from butterflyc.compiler.capture.recognise_masks import choices_by_mask, with_masks
from butterflyc.compiler.capture.recognise_probe import fold_constants
from butterflyc.compiler.ir.graph import Graph
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.ir.verify import verify

EXPERTS = 5
Mask = Callable[[Tensor], Tensor]


class Masked(nn.Module):
    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return self.mask(x * 2.0)


def captured(mask: Mask) -> tuple[Graph, Tensor]:
    x = torch.randn(9, EXPERTS, generator=torch.Generator().manual_seed(0))
    return fold_constants(capture(Masked(mask).eval(), (x,)).graph), x


# (k, whether all others are meant, of which expert) for each mask.
CHOICES: dict[str, tuple[Mask, tuple[int, bool, int | None]]] = {
    "reaches the largest": (lambda s: s >= s.amax(-1, keepdim=True), (1, False, None)),
    "is the largest": (lambda s: s == s.max(-1).values[:, None], (1, False, None)),
    "is below the largest": (lambda s: s < s.max(-1, keepdim=True).values, (1, True, None)),
    "is not the largest": (lambda s: s != s.amax(-1, keepdim=True), (1, True, None)),
    "is no less": (lambda s: s - s.amax(-1, keepdim=True) >= 0, (1, False, None)),
    "by kthvalue": (lambda s: s >= s.kthvalue(3, -1, True).values, (3, False, None)),
    "by median": (lambda s: s > s.median(-1, True).values, (2, False, None)),
    "by sort": (lambda s: s >= s.sort(-1).values[:, -2, None], (2, False, None)),
    "by rank": (lambda s: s.argsort(-1, True).argsort(-1) < 2, (2, False, None)),
    "by rank from below": (lambda s: s.argsort(-1).argsort(-1) > 2, (3, True, None)),
    "by topk": (lambda s: s >= s.topk(2, -1).values[:, -1:], (2, False, None)),
    "by comparisons": (lambda s: (s[:, None] > s[:, :, None]).sum(-1) < 2, (2, False, None)),
    "of one expert": (lambda s: s[:, 3] == s.amax(-1), (1, False, 3)),
    "the lowest": (lambda s: s <= s.amin(-1, keepdim=True), (4, True, None)),
    "of softmax": (lambda s: (p := s.softmax(-1)) >= p.amax(-1, keepdim=True), (1, False, None)),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_mask_of_the_largest_scores_is_their_numbers(name: str) -> None:
    """The mask is found for what it is, and made by numbers it holds for the same experts."""
    mask, wanted = CHOICES[name]
    graph, x = captured(mask)
    (choice,) = choices_by_mask(graph)
    assert (choice.k, choice.inverted, choice.expert) == wanted
    for each in (choice, choice.mirrored()):
        new = with_masks(graph, (each,))
        verify(new)
        assert [n["k"] for n in new.nodes if n.op == "top_k" and n.notes] == [each.k]
        for scale in (0.1, 1, 10):
            was, now = (interpret(form, scale * x.numpy())[0] for form in (graph, new))
            np.testing.assert_array_equal(now, was)


# Masks of scores along an axis that is not the last.
ALONG: dict[str, tuple[Mask, int]] = {
    "columns": (lambda s: s >= s.amax(0, keepdim=True), 0),
    "columns of channels": (lambda s: (c := s.view(3, 3, 5)) >= c.amax(1, True), 1),
    "below the best of channels": (lambda s: (c := s.view(3, 3, 5)) < c.amax(1, True), 1),
    "two of channels": (lambda s: (c := s.view(3, 3, 5)) >= c.topk(2, 1).values[:, 1:], 1),
    "of one channel": (lambda s: (c := s.view(3, 3, 5))[:, 2] == c.max(1).values, 1),
}


@pytest.mark.parametrize("name", ALONG)
def test_masks_along_other_axes(name: str) -> None:
    """Experts that are channels of an image are found, and their masks stand where they stood."""
    mask, axis = ALONG[name]
    graph, x = captured(mask)
    (choice,) = choices_by_mask(graph)
    assert choice.axis == axis
    for each in (choice, choice.mirrored()):
        new = with_masks(graph, (each,))
        verify(new)
        was, now = (interpret(form, x.numpy())[0] for form in (graph, new))
        np.testing.assert_array_equal(now, was)


OTHERS: dict[str, Mask] = {
    "near the largest": lambda s: s >= s.amax(-1, keepdim=True) - 0.1,
    "a share of the largest": lambda s: (p := s.softmax(-1)) >= 0.9 * p.amax(-1, keepdim=True),
    "above the mean": lambda s: s >= s.mean(-1, keepdim=True),
    "above a number": lambda s: s.softmax(-1) > 0.2,
    "the largest of the next row": lambda s: s >= s.roll(1, 0).amax(-1, keepdim=True),
    "the second": lambda s: s == s.topk(2, -1).values[:, 1:],
    "the largest with a bias": lambda s: s + torch.arange(5.0) >= s.amax(-1, keepdim=True),
    "by numbers": lambda s: s.argmax(-1, keepdim=True) == torch.arange(EXPERTS),
    "by numbers of a sort": lambda s: s.sort(-1, True).indices[:, 0] == 3,
    "another expert for each row": lambda s: s.diagonal()[:5] == s[:5].amax(-1),
    "of halves": lambda s: s.view(3, 3, 5)[:, :2] == s.view(3, 3, 5).amax(-1, True)[:, :2],
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_masks_choose_no_experts(name: str) -> None:
    """What does not hold for the k largest of each row, for one k, is no choice of experts."""
    graph, _ = captured(OTHERS[name])
    assert choices_by_mask(graph) == ()


def test_a_mask_that_routes_nothing_stays_as_it_is() -> None:
    """Where no experts are weighed by it, nothing is changed and nothing is reported."""
    graph, _ = captured(lambda s: torch.where(s >= s.amax(-1, keepdim=True), s, 0.0))
    assert choices_by_mask(graph) != ()
    found = recognise(graph)
    assert found.layers == ()
    assert found.graph == graph


def test_the_largest_is_read_off_the_same_choice() -> None:
    """A maximum beside its mask, and a top k of as many, are results of the one routing op."""
    graph, _ = captured(
        lambda s: torch.where(s == s.amax(-1, True), s.max(-1, True)[0] + s.topk(1)[0], 0.0)
    )
    new = with_masks(graph, choices_by_mask(graph))
    assert [node.op for node in new.nodes if node.op in ("top_k", "max")] == ["top_k"]


@pytest.mark.parametrize("name", ["by topk", "by kthvalue"])
def test_experts_that_are_no_butterfly_are_reported_once(name: str) -> None:
    """A mask that weighs other experts is reported with the reason, and stays as it is."""
    mask, _ = CHOICES[name]
    weights = torch.randn(EXPERTS, EXPERTS, EXPERTS)
    graph, _ = captured(
        lambda s: torch.einsum("te,ted->td", s * mask(s), torch.einsum("edc,tc->ted", weights, s))
    )
    found = recognise(graph)
    (report,) = found.layers
    assert "no matrix of the experts is ternary" in report.reason
    assert found.graph == graph
