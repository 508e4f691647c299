"""Counts of numbers that were joined, sorted or put in bins come out as in PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules import transformer

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.ir.interpret import interpret

from .test_export_counts import EXPERTS, TOKENS, WIDTH, K, Mixture, inputs

Send = Callable[..., Tensor]


def joined(m: Mixture, x: Tensor, numbers: Tensor, weight: Tensor, token: Tensor) -> Tensor:
    """Rows sorted by ``numbers`` [R], split by how often each occurs, and put back."""
    order = numbers.argsort(stable=True)
    counts = torch.bincount(numbers, minlength=EXPERTS).tolist()
    parts = x[token[order]].split(counts)
    done = torch.cat([expert(part) for expert, part in zip(m.experts, parts, strict=True)])
    return torch.zeros_like(x).index_add(0, token[order], done * weight[order, None])


def slot_after_slot(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    numbers = torch.cat([index[:, 0], index[:, 1]])
    return joined(m, x, numbers, weight.T.flatten(), torch.arange(TOKENS).repeat(K))


def slots_side_by_side(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    numbers = torch.stack(index.unbind(1), dim=1).flatten()
    return joined(m, x, numbers, weight.flatten(), torch.arange(TOKENS * K) // K)


def best_after_best(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    scores = m.router(x)
    first = scores.argmax(-1)
    second = scores.masked_fill(F.one_hot(first, EXPERTS).bool(), -torch.inf).argmax(-1)
    numbers = torch.cat([first, second])
    gates = scores.softmax(-1)
    gates = torch.cat([gates.gather(1, part[:, None])[:, 0] for part in (first, second)])
    return joined(m, x, numbers, gates, torch.arange(TOKENS).repeat(2))


FORMS: list[Send] = [slot_after_slot, slots_side_by_side, best_after_best]


@pytest.mark.parametrize("form", FORMS)
def test_counts_of_joined_numbers_are_captured(form: Send) -> None:
    """The graph agrees with the model in double precision, whichever experts are idle."""
    module = Mixture(form).eval()
    graph = capture(module, (inputs()[0],)).graph
    double = copy.deepcopy(module).double()
    for x in inputs():
        (got,) = interpret(graph, x.numpy())
        with torch.no_grad():
            want = double(x.double()).numpy()
        assert got.shape == (TOKENS, WIDTH)
        assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max()


def test_torch_is_left_as_it_was() -> None:
    """What torch asks of masks is asked by its own function again once a model is captured."""
    before = vars(transformer)["_detect_is_causal_mask"]
    capture(Mixture(slot_after_slot).eval(), (inputs()[0],))
    assert vars(transformer)["_detect_is_causal_mask"] is before
