"""Rows that the data chooses: all are computed, and those that were not chosen have no effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from butterflyc.compiler.capture.chosen import same
from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.errors import Unsupported
from butterflyc.compiler.ir.build import input_node, make
from butterflyc.compiler.ir.graph import Node
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.ir.types import Type

from .agreement import Function, agree, check, data

W = data(4, 6)


def positive(x: Tensor) -> Tensor:
    return x[:, 0] > 0


def by_mask(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[positive(x)] = F.gelu(F.linear(x[positive(x)], W.mT @ W)[..., :1]) + x[positive(x)]
    return y


def added_by_mask(x: Tensor) -> Tensor:
    mask = positive(x)
    y = x.clone()
    y[mask] += x[mask].softmax(-1) * x[:, 1][mask].unsqueeze(-1)
    return y


def by_number(x: Tensor) -> Tensor:
    rows = positive(x).nonzero().squeeze(-1)
    return torch.zeros_like(x).index_add(0, rows, x[rows] @ W.mT @ W)


def by_coordinates(x: Tensor) -> Tensor:
    token, slot = torch.where(x[:, :2] > 0)
    y = torch.zeros_like(x)
    return y.index_add(0, token, x[token] * x[token, slot, None])


def set_by_number(x: Tensor) -> Tensor:
    token, slot = (x[:, :1] > 0).nonzero(as_tuple=True)
    y = x.clone()
    y[token] = y[token] + x[token, slot].unsqueeze(1)
    return y


def scattered(x: Tensor) -> Tensor:
    rows = positive(x).nonzero()  # [n, 1]
    values = F.layer_norm(x[rows[:, 0]], (6,))
    return torch.zeros_like(x).scatter_add(0, rows.expand(-1, 6), values)


def joined(x: Tensor) -> Tensor:
    first, second = (m.nonzero()[:, 0] for m in (positive(x), x[:, 1] > 0.3))
    rows, values = torch.cat([first, second]), torch.cat([x[first] * 2, x[second].neg()])
    return torch.zeros_like(x).index_add(0, rows, values)


def joined_places(x: Tensor) -> Tensor:
    rows = torch.cat([positive(x).nonzero(), (x[:, 1] > 0.3).nonzero()])[:, 0]
    return torch.zeros_like(x).index_add(0, rows, x[rows])


def pairs(x: Tensor) -> Tensor:
    mask = positive(x)
    part = x[mask]
    a, b = part[:, 0::2], part[:, 1::2]
    turned = torch.stack([a - b, a + b], -1).reshape(part.shape[0], 6)
    return put(x, turned)


def put(x: Tensor, rows: Tensor) -> Tensor:
    return x.index_put((positive(x),), rows)


def summed(x: Tensor) -> Tensor:
    return x[positive(x)].sum(0) + x.masked_select(x > 1).sum()


def contracted(x: Tensor) -> Tensor:
    part = x[positive(x)]
    return part.mT @ part


def two_axes(x: Tensor) -> Tensor:
    images = x.reshape(-1, 2, 6)
    mask = images[..., 0] > 0
    y = torch.zeros_like(images)
    y[mask] = images[mask].cumsum(-1)
    return y


def routed(x: Tensor) -> Tensor:
    part = x[positive(x)]
    values, index = part.topk(2)
    chosen = part.gather(1, index) + W.reshape(-1)[index] * values.amax(-1, keepdim=True)
    return torch.zeros(x.shape[0], 2).index_put((positive(x),), chosen)


def filled(x: Tensor) -> Tensor:
    y = x.clone()
    y[positive(x).nonzero()[:, 0]] = 0.5
    return y


def turned(x: Tensor) -> Tensor:
    mask = positive(x)
    pairs = torch.view_as_complex(x[mask].unflatten(-1, (3, 2)).contiguous())
    phase = torch.polar(torch.ones(3), W[0, :3])
    return put(x, torch.view_as_real(pairs * phase).flatten(1))


def counted(x: Tensor) -> Tensor:
    part = x[positive(x)]
    ones = part.new_ones(part.shape[0])
    return ones.sum() + torch.full_like(part, 2.0).sum(0) + ones @ part


def asked_for_one(x: Tensor) -> Tensor:
    return put(x, torch.tensordot(x[positive(x)], W.mT @ W, dims=1))


def repeated(x: Tensor) -> Tensor:
    part = x[positive(x)]
    return W[0].expand_as(part).sum(0) + W[:1].expand(part.shape[0], 6).square().sum()


def written_to_zeros(x: Tensor) -> Tensor:
    part = x[positive(x)]
    even = torch.arange(0, 6, 2)
    y, z = torch.zeros_like(part), torch.zeros(part.shape, dtype=part.dtype)
    for j in range(3):
        y[:, 2 * j] = part[:, 2 * j] - part[:, 2 * j + 1]
    y[..., 1::2] = part[:, 0::2] + part[:, 1::2]
    z[:, even + 1] = y[:, even]
    return put(x, z.scatter(1, even.expand(part.shape[0], 3), y[:, 1::2]))


def written_to_complex_zeros(x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x[positive(x)].unflatten(-1, (3, 2)).contiguous())
    y, ones = torch.zeros_like(pairs), torch.ones_like(pairs)
    y[:, 1:] = pairs[:, :2] * torch.polar(torch.ones(2), W[0, :2])
    return put(x, torch.view_as_real(y).flatten(1)) + torch.view_as_real(ones.sum())[0]


def joined_with_zeros(x: Tensor) -> Tensor:
    part = x[positive(x)]
    wide = torch.cat([part, torch.zeros(part.shape[0], 2)], 1)
    long = torch.cat([wide, torch.ones_like(wide)])
    rows = torch.cat([positive(x).nonzero()[:, 0]] * 2)
    return torch.zeros(x.shape[0], 8).index_add(0, rows, long)


def scattered_by_mask(x: Tensor) -> Tensor:
    mask = positive(x)
    return x.masked_scatter(mask[:, None], x[mask].tanh())


def rows_of_elements(x: Tensor) -> Tensor:
    mask = positive(x)[:, None]
    rows = x.masked_select(mask).view(-1, 6)
    again = torch.masked_select(x.view(-1, 2, 3), mask[..., None]).reshape(-1, 6).tanh()
    return x.masked_scatter(mask.expand_as(x), rows @ W.mT @ W) + put(x, again)


FORMS = [
    by_mask, added_by_mask, by_number, by_coordinates, set_by_number, scattered, joined,
    joined_places, pairs, summed, contracted, two_axes, routed, filled, turned, counted, repeated,
    asked_for_one,
    written_to_zeros, written_to_complex_zeros, joined_with_zeros,
    scattered_by_mask, rows_of_elements,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_rows_chosen_by_data(form: Callable[[Tensor], Tensor]) -> None:
    """The graph agrees with PyTorch for some rows, for all, for none, and for those of others."""
    x = data(8, 6)
    graph = agree(Function(form), x).graph
    for other in (x.abs(), -x.abs(), x.flip(0), data(8, 6, seed=3)):
        (got,) = interpret(graph, other.numpy())
        check(got, form(other).numpy(), 1e-5, "on other rows")


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**16))
def test_masks_of_any_size(tokens: int, slots: int, seed: int) -> None:
    """A loop over experts by coordinates agrees for any number of tokens and slots, one too."""

    def loop(x: Tensor) -> Tensor:
        gates, experts = x.topk(slots, -1)
        y = torch.zeros_like(x)
        for expert in range(6):
            token, slot = torch.where(experts == expert)
            y = y.index_add(0, token, (expert + x[token]).tanh() * gates[token, slot, None])
        return y

    agree(Function(loop), data(tokens, 6, seed=seed))


REFUSED: list[tuple[Callable[[Tensor], Any], str]] = [
    (lambda x: put(x, x[positive(x)].flip(0)), "not followed|mixed by"),
    (lambda x: put(x, x[positive(x)].softmax(0)), "mixed by 'softmax'"),
    (lambda x: put(x, x[positive(x)].cumsum(0)), "mixed by 'slice'"),
    (lambda x: put(x, x[positive(x)] - x[positive(x)].mean(0)), "mixed by 'mean'"),
    (lambda x: x[positive(x)].amax(0), "mixed by 'max'"),
    (lambda x: x[positive(x)][:2].sum(0), "mixed by 'slice'|not followed"),
    (lambda x: x[positive(x)].sum(0) / x[positive(x)].shape[0], "number of chosen rows"),
    (lambda x: put(x, x[x[:, 1] > 0]), "different masks"),
    (lambda x: x.masked_scatter(x[:, 1:2] > 0, x[positive(x)]), "written by another"),
    (lambda x: put(x, x.masked_select(x > 0).view(-1, 6)), "mixed by 'reshape'|not followed"),
    (lambda x: x.masked_select(x[0] > 0).view(-1, 8).sum(0), "mixed by 'reshape'"),
    (lambda x: x.masked_select(positive(x)[:, None]).view(-1, 3).sum(0), "mixed by 'reshape'"),
    (lambda x: x[positive(x)] @ x[positive(x)].mT, "mixed by 'matmul'"),
    (lambda x: torch.cat([x[positive(x)], x]).sum(0), "joined with others"),
    (lambda x: x[positive(x)].reshape(-1).sum() + x[positive(x)].flatten().amax(), "mixed by"),
    (lambda x: x[positive(x)].argmax(0), "mixed by 'argmax'"),
    (lambda x: x[positive(x)][x[positive(x)][:, 1] > 0].sum(0), "among rows that the data chose"),
    (
        lambda x: x[(x[positive(x)][:, 1] > 0).nonzero()[:, 0]].sum(0),
        "among rows that the data chose",
    ),
    (lambda x: (x, x[positive(x)]), "a result whose size the data chooses"),
    (lambda x: (x, torch.ones_like(x[positive(x)])), "a result whose size the data chooses"),
    (lambda x: x + torch.ones_like(x[positive(x)]).cumsum(0).sum(0), "mixed by 'slice'"),
    (lambda x: put(x, torch.zeros_like(x[x[:, 1] > 0])), "different masks"),
    (
        lambda x: torch.ones(3 * x[positive(x)].shape[0]).sum() + x,
        "in a form that is not followed",
    ),
]


@pytest.mark.parametrize(("function", "what"), REFUSED)
def test_rows_that_mix(function: Callable[[Tensor], Any], what: str) -> None:
    """What mixes chosen rows with the others is refused at its line, never computed."""
    with pytest.raises(Unsupported, match=what) as caught:
        capture(Function(function), (data(8, 6),))
    assert "test_chosen.py:" in str(caught.value.where)
    assert caught.value.help


X = input_node("x", Type("f32", (2,)))


def doubled(x: Node, times: int, last: str = "add") -> Node:
    """x + x, the result of that plus itself, and so on; ``last`` stands in place of the first."""
    for i in range(times):
        x = make(last if i == 0 else "add", x, x)
    return x


def test_sums_of_sums_are_compared_in_time() -> None:
    """Two graphs of 60 doublings, and chains of 5000, are the same; with one other op they differ.

    There are 2**60 paths through such a graph.
    """
    assert same(doubled(X, 60), doubled(X, 60))
    assert not same(doubled(X, 60), doubled(X, 60, "mul"))
    assert not same(doubled(X, 60), doubled(X, 61))
    assert same(doubled(X, 5000), doubled(X, 5000))


def test_what_is_the_same() -> None:
    """Names do not tell values apart; ops, attributes, operands, their order and inputs do."""
    other = input_node("x", Type("f32", (2,)))
    y = make("neg", X, name="y")
    assert same(y, make("neg", X, name="z"))
    assert same(make("sub", y, X), make("sub", make("neg", X), X))
    assert not same(make("sub", y, X), make("sub", X, y))
    assert not same(make("sub", y, y), make("sub", y, X))
    assert not same(y, make("abs", X))
    assert not same(make("sum", X, axes=(0,)), make("sum", X, axes=(0,), keep=True))
    assert not same(X, other)
    assert not same(make("neg", X), make("neg", other))
