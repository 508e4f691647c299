"""Counts whose sums are known, and what must not be taken for one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.errors import Unsupported
from butterflyc.compiler.ir.interpret import interpret

from .agreement import Function, agree, check, data

EXPERTS, TOKENS, WIDTH, K = 5, 7, 6, 2
SCALES = data(EXPERTS, WIDTH)


def choice(x: Tensor) -> Tensor:
    return x[:, :EXPERTS].topk(K, -1).indices


def run(x: Tensor, order: Tensor, counts: list[int], slots: int = K) -> Tensor:
    """Rows in an order, in pieces of so many rows, each scaled in its own way, and added up."""
    parts = x[order // slots].split(counts)
    done = torch.cat([part * SCALES[e] for e, part in enumerate(parts)])
    return torch.zeros_like(x).index_add(0, order // slots, done)


def counted(index: Tensor) -> Tensor:
    return torch.bincount(index.flatten(), minlength=EXPERTS)


def numbers_that_change(x: Tensor) -> Tensor:
    flat = choice(x).flatten().clone()
    counts = counted(flat).tolist()
    flat[0] = 0
    return run(x, flat.argsort(stable=True), counts)


def in_falling_order(x: Tensor) -> Tensor:
    flat = choice(x).flatten()
    return run(x, flat.argsort(stable=True, descending=True), counted(flat).tolist())


def counts_turned(x: Tensor) -> Tensor:
    flat = choice(x).flatten()
    order = flat.argsort(stable=True, descending=True)
    return run(x, order, counted(flat).flip(0).tolist())


def slot_by_slot(x: Tensor) -> Tensor:
    index = choice(x)
    order = index.t().flatten().argsort(stable=True)
    parts = x[order % TOKENS].split(counted(index).tolist())
    done = torch.cat([part * SCALES[e] for e, part in enumerate(parts)])
    return torch.zeros_like(x).index_add(0, order % TOKENS, done)


def sorted_again(x: Tensor) -> Tensor:
    sorted_numbers, order = choice(x).flatten().sort(stable=True)
    again = sorted_numbers.argsort(stable=True)
    return run(x, order[again], counted(sorted_numbers).tolist())


def counts_by_scatter(x: Tensor) -> Tensor:
    flat = choice(x).flatten()
    counts = torch.zeros(EXPERTS, dtype=torch.long).scatter_add_(0, flat, torch.ones_like(flat))
    return run(x, flat.argsort(stable=True), counts.tolist())


def counts_by_index_add(x: Tensor) -> Tensor:
    flat = choice(x).flatten()
    zeros = flat.new_zeros(EXPERTS)
    counts = zeros.index_add(0, flat, torch.ones_like(flat))
    return run(x, flat.argsort(stable=True), counts.tolist())


def with_values_of_unique(x: Tensor) -> Tensor:
    index = choice(x)
    order, y, start = index.flatten().argsort(stable=True), torch.zeros_like(x), 0
    found, counts = torch.unique(index, return_counts=True)
    for e, count in zip(found.tolist(), counts.tolist(), strict=True):
        rows = order[start : start + count] // K
        y = y.index_add(0, rows, x[rows] * SCALES[e])
        start += count
    return y


def counts_as_factors(x: Tensor) -> Tensor:
    counts = counted(choice(x)).tolist()
    return x * sum(counts) + sum((x * (n / TOKENS)) * SCALES[e] for e, n in enumerate(counts))


def a_tensor_of_counts(x: Tensor) -> Tensor:
    return x + torch.tensor(counted(choice(x)).tolist(), dtype=torch.float32).cumsum(0).sum()


def totals_of_no_axes(x: Tensor) -> Tensor:
    counts = counted(choice(x))
    total = counts.new_zeros(()) + torch.zeros_like(counts.sum()) + torch.ones_like(counts[0])
    return x[: (total + counts[0]).item() - 1].sum(0) + x.new_ones(())


def first_alone(x: Tensor) -> Tensor:
    flat = choice(x).flatten()
    order, first = flat.argsort(stable=True), counted(flat)[0].item()
    return torch.zeros_like(x).index_add(0, order[:first] // K, x[order[:first] // K])


def searched(x: Tensor) -> Tensor:
    flat, order = choice(x).flatten().sort()
    ends = torch.searchsorted(flat, torch.arange(1, EXPERTS)).tolist()
    return x[order // K][: ends[0]].sum(0)


FORMS = [
    searched,     numbers_that_change, in_falling_order, counts_turned, slot_by_slot, sorted_again,
    counts_by_scatter, counts_by_index_add, with_values_of_unique, counts_as_factors,
    a_tensor_of_counts, totals_of_no_axes, first_alone,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_counts_that_are_known(form: Callable[[Tensor], Tensor]) -> None:
    """Pieces between known sums of counts agree with PyTorch, also if all tokens are one."""
    graph = agree(Function(form), data(TOKENS, WIDTH)).graph
    for seed in range(8):
        x = data(TOKENS, WIDTH, seed=seed)
        x = x[:1].repeat(TOKENS, 1) if seed % 4 == 3 else x
        (got,) = interpret(graph, x.numpy())
        check(got, form(x).numpy(), 1e-5, f"seed {seed}")


def counts_that_change(x: Tensor) -> Tensor:
    flat = choice(x).flatten()
    counts = counted(flat)
    counts[0] += 0
    return run(x, flat.argsort(), counts.tolist())


def most_in_use(x: Tensor) -> Tensor:
    counts = counted(choice(x)).tolist()
    return x * SCALES[max(range(EXPERTS), key=lambda e: counts[e])]


@pytest.mark.parametrize("form", [counts_that_change, most_in_use])
def test_counts_that_are_not_known(form: Callable[[Tensor], Tensor]) -> None:
    """Numbers of which nothing is known, or nothing any more, are no places between rows."""
    with pytest.raises(Unsupported, match="a number that only the data tells") as caught:
        capture(Function(form), (data(TOKENS, WIDTH),))
    assert caught.value.help
    assert "test_known.py:" in str(caught.value.where)
