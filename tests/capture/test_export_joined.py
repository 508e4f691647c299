"""Counts of numbers that were joined, sorted or put in bins come out as in PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules import transformer

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.errors import Unsupported
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


def in_pieces(m: Mixture, x: Tensor, weight: Tensor, index: Tensor, bounds: Send) -> Tensor:
    """Rows sorted by expert, each expert's between two of the numbers that ``bounds`` gives."""
    numbers, order = index.flatten().sort(stable=True)
    places = bounds(index, numbers, order)
    y = torch.zeros_like(x)
    for expert, (start, stop) in zip(m.experts, pairwise(places), strict=True):
        token = order[start:stop] // K
        part = expert(x[token]) * weight.flatten()[order[start:stop], None]
        y = y.index_add(0, token, part)
    return y


def by(bounds: Send) -> Send:
    return lambda m, x, weight, index: in_pieces(m, x, weight, index, bounds)


def searched(index: Tensor, numbers: Tensor, order: Tensor) -> list[int]:
    return torch.searchsorted(numbers, torch.arange(EXPERTS + 1)).tolist()


def searched_above(index: Tensor, numbers: Tensor, order: Tensor) -> list[int]:
    last = torch.searchsorted(numbers, torch.arange(EXPERTS), right=True)
    return [0, *last.tolist()]


def searched_in_order(index: Tensor, numbers: Tensor, order: Tensor) -> list[int]:
    flat = index.flatten()
    again = flat[flat.argsort()]
    return torch.searchsorted(again, torch.arange(EXPERTS + 1), side="left").tolist()


def in_bins(index: Tensor, numbers: Tensor, order: Tensor) -> list[int]:
    counts = torch.histc(numbers.float(), bins=EXPERTS, min=0, max=EXPERTS - 1)
    return [0, *counts.long().cumsum(0).tolist()]


def in_wider_bins(index: Tensor, numbers: Tensor, order: Tensor) -> list[int]:
    counts = torch.histc(index.float(), EXPERTS, -0.5, EXPERTS - 0.5).int()
    return [0, *counts.cumsum(0).tolist()]


def in_runs(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    flat, order = index.flatten().sort(stable=True)
    numbers, counts = torch.unique_consecutive(flat, return_counts=True)
    y, start = torch.zeros_like(x), 0
    for e, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        place = order[start : start + count]
        part = m.experts[e](x[place // K]) * weight.flatten()[place, None]
        y = y.index_add(0, place // K, part)
        start += count
    return y


def split_at_places(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    order = index.flatten().argsort()
    ends = torch.bincount(index.flatten(), minlength=EXPERTS).cumsum(0)
    parts = torch.tensor_split(x[order // K], ends[:-1])
    done = torch.cat([expert(part) for expert, part in zip(m.experts, parts, strict=True)])
    return torch.zeros_like(x).index_add(0, order // K, done * weight.flatten()[order, None])


def token_by_index(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    rows = [
        sum(weight[t, s] * m.experts[0](x[t]) * m.scales[index[t, s]] for s in range(K))
        for t in range(TOKENS)
    ]
    return torch.stack(rows)


FORMS: list[Send] = [
    slot_after_slot, slots_side_by_side, best_after_best, by(searched), by(searched_above),
    by(searched_in_order), by(in_bins), by(in_wider_bins), in_runs, split_at_places, token_by_index,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_rows_between_counts_are_captured(form: Send) -> None:
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


def in_coarse_bins(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    counts = torch.histc(index.float(), bins=EXPERTS, min=0, max=2 * EXPERTS).int().tolist()
    order = index.flatten().argsort()
    return torch.stack([part.sum(0) for part in x[order // K].split(counts)])  # coarse


def in_runs_of_any_order(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    _, counts = torch.unique_consecutive(index.flatten(), return_counts=True)
    return torch.stack([part.sum(0) for part in x.repeat(K, 1).split(counts.tolist())])  # runs


def searched_in_any_order(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    stop = torch.searchsorted(index.flatten(), torch.arange(1, 2)).tolist()
    return x[: stop[0]].sum(0)  # unsorted


def split_anywhere(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return torch.tensor_split(x, x[0, :1].long().clamp(0, 3))[0].sum(0)  # anywhere


def padded_lists(m: Mixture, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    rows = [x[(index == e).any(-1)] for e in range(EXPERTS)]
    return torch.nn.utils.rnn.pad_sequence(rows).sum()


REFUSED: list[tuple[Send, str, str]] = [
    (in_coarse_bins, "a place between rows", "# coarse"),
    (in_runs_of_any_order, "the length of a list|hangs on data", "# runs"),
    (searched_in_any_order, "a place between rows", "# unsorted"),
    (split_anywhere, "as long as the data tells", "# anywhere"),
    (padded_lists, "hangs on data", ""),
]


@pytest.mark.parametrize(("form", "what", "line"), REFUSED)
def test_other_counts_are_refused(form: Send, what: str, line: str) -> None:
    """What is no count of numbers that are known is refused at its line, with a way out."""
    with pytest.raises(Unsupported, match=what) as caught:
        capture(Mixture(form), (inputs()[0],))
    assert caught.value.help
    if line:
        lines = Path(__file__).read_text().splitlines()
        number = next(n for n, text in enumerate(lines, 1) if line in text)
        assert caught.value.where == f"test_export_joined.py:{number}"


def test_torch_is_left_as_it_was() -> None:
    """What torch asks of masks is asked by its own function again once a model is captured."""
    before = vars(transformer)["_detect_is_causal_mask"]
    capture(Mixture(slot_after_slot).eval(), (inputs()[0],))
    assert vars(transformer)["_detect_is_causal_mask"] is before
