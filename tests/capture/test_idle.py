"""Models that ask whether an expert has tokens: the question is left out where that is right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.errors import Unsupported

from .agreement import agree, data

EXPERTS = 5


class Asking(nn.Module):
    """A top-1 mixture of small experts in a loop; ``step`` is what each expert does to y."""

    def __init__(self, step: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(6, EXPERTS)
        self.w = nn.Parameter(torch.randn(EXPERTS, 6, 6))
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).argmax(-1)
        y = torch.zeros_like(x)
        for expert in range(EXPERTS):
            y = self.step(x, y, chosen == expert, self.w[expert])
        return y


def add(x: Tensor, y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    rows = mask.nonzero()[:, 0]
    return y.index_add(0, rows, (x[rows] @ w).tanh())


def any_of(x: Tensor, y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    return add(x, y, mask, w) if mask.any() else y


def not_any(x: Tensor, y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    return y if not mask.any() else add(x, y, mask, w)


def any_as_item(x: Tensor, y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    return add(x, y, mask, w) if mask.any().item() else y


def sum_compared(x: Tensor, y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    return y if mask.sum() == 0 else add(x, y, mask, w)


def sum_as_number(x: Tensor, y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    return y if int(mask.sum()) == 0 else add(x, y, mask, w)


def numel(x: Tensor, y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    return y if mask.nonzero().numel() == 0 else add(x, y, mask, w)


def length(x: Tensor, y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    return add(x, y, mask, w) if len(x[mask]) > 0 else y


@pytest.mark.parametrize(
    "step", [any_of, not_any, any_as_item, sum_compared, sum_as_number, numel, length]
)
def test_questions_that_only_skip(step: Callable[..., Tensor]) -> None:
    """However a model asks for an idle expert, it is captured as if it had not asked, and agrees.

    With three tokens for five experts some are idle.
    """
    agree(Asking(step), data(3, 6))


def adds_something(x: Tensor, y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    return add(x, y, mask, w) + w[0] if mask.any() else y


def scales_by_count(x: Tensor, y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    count = int(mask.sum())
    return add(x, y, mask, w) * (1 + 1 / count) if count > 0 else y


@pytest.mark.parametrize("tokens", [3, 64])
@pytest.mark.parametrize("step", [adds_something, scales_by_count])
def test_questions_that_do_more(step: Callable[..., Tensor], tokens: int) -> None:
    """Doing more than to skip an idle expert is refused, also if the example has none."""
    with pytest.raises(Unsupported) as caught:
        capture(Asking(step), (data(tokens, 6),))
    assert caught.value.help


def scaled(x: Tensor, y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    """The largest number of a row is no score."""
    return any_of(x / x.abs().amax(-1, keepdim=True), y, mask, w)


def ordered(x: Tensor, y: Tensor, mask: Tensor, w: Tensor) -> Tensor:
    return any_of(x.sort().values + x.min(-1, keepdim=True).values, y, mask, w)


@pytest.mark.parametrize("step", [scaled, ordered])
def test_what_takes_the_largest_but_routes_nothing(step: Callable[..., Tensor]) -> None:
    """Models that also scale by a largest number, or sort upwards, are compared as they are."""
    agree(Asking(step), data(3, 6))
