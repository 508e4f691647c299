"""Loops over those experts that have tokens: as many as only the data tells."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.errors import Unsupported

from .mixture import EXPERTS, Mixture, agree_on_all_inputs, inputs


def run(m: Mixture, x: Tensor, weight: Tensor, index: Tensor, experts: list[int]) -> Tensor:
    y = torch.zeros_like(x)
    for e in experts:
        token, slot = torch.where(index == e)
        y.index_add_(0, token, m.experts[e](x[token]) * weight[token, slot, None])
    return y


def transformers(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    mask = F.one_hot(index, EXPERTS).permute(2, 1, 0)
    for expert in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
        slot, token = torch.where(mask[expert].squeeze(0))
        rows = m.experts[expert](x[None, token].reshape(-1, x.shape[1]))
        y.index_add_(0, token, rows * weight[token, slot, None])
    return y


def as_list(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    hit = (F.one_hot(index, EXPERTS).sum((0, 1)) > 0).nonzero(as_tuple=True)[0]
    return run(m, x, weight, index, hit.tolist())


def by_any(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    hit = F.one_hot(index, EXPERTS).bool().transpose(0, 2).flatten(1).any(1)
    return run(m, x, weight, index, [int(e) for e in torch.where(hit)[0]])


def by_counts(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    counts = torch.bincount(index.view(-1), minlength=EXPERTS)
    return run(m, x, weight, index, torch.nonzero(counts)[:, 0].tolist())


def by_argwhere(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    counts = F.one_hot(index, EXPERTS).float().sum(1, keepdim=True).movedim(2, 0).sum((1, 2))
    return run(m, x, weight, index, [e.item() for e in counts.bool().argwhere().squeeze(-1)])


def by_largest(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    hit = F.one_hot(index, EXPERTS).amax((0, 1)).nonzero().select(1, 0)
    return run(m, x, weight, index, hit.cpu().tolist())


FORMS = [transformers, as_list, by_any, by_counts, by_argwhere, by_largest]


@pytest.mark.parametrize("form", FORMS)
def test_loops_over_experts_in_use(form: Callable[..., Tensor]) -> None:
    """Such a loop runs over all experts, and agrees with the model whichever are idle."""
    agree_on_all_inputs(form)


def with_something_else(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    y = x
    for e in F.one_hot(index, EXPERTS).sum((0, 1)).nonzero():
        y = y + m.scales[e]
    return y


def over_tokens(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    for token in (x[:, 0] > 0).nonzero():
        x = x + x[token]
    return x


def over_busy_experts(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    busy = (F.one_hot(index, EXPERTS).sum((0, 1)) > 1).nonzero()
    return run(m, x, weight, index, busy[:, 0].tolist())


def over_slots(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    hit = F.one_hot(index, EXPERTS).sum((0, 2)).nonzero()
    return run(m, x, weight, index, [int(e) for e in hit])


REFUSED = [with_something_else, over_tokens, over_busy_experts, over_slots]


@pytest.mark.parametrize("form", REFUSED)
def test_other_loops_are_refused(form: Callable[..., Tensor]) -> None:
    """A loop that does something for an idle expert, or is over other places, is refused."""
    with pytest.raises(Unsupported) as caught:
        capture(Mixture(form), (inputs()[0],))
    assert caught.value.help
