"""In-place calls made functional by rewriting the graph: the same results, or left to torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.functional import made_functional
from butterflyc.compiler.errors import Unsupported

from .agreement import Function, agree, data

WRITTEN: dict[str, Callable[[Tensor], Tensor]] = {}
LEFT: dict[str, Callable[[Tensor], Tensor]] = {}
Case = Callable[[Tensor], Tensor]


def written(function: Case) -> Case:
    """A function whose in-place calls are rewritten."""
    WRITTEN[function.__name__] = function
    return function


def left(function: Case) -> Case:
    """A function that is left to torch's own way."""
    LEFT[function.__name__] = function
    return function


@written
def columns(x: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    for j in range(0, 8, 2):
        z[:, j] = x[:, j] - x[:, j + 1]
        z[:, j + 1] = x[:, j] + z[:, j]
    return z


@written
def slices_of_slices(x: Tensor) -> Tensor:
    z = x.clone()
    half = z[:, 2:6]
    half[1:, ::2] += 1.0
    half[0] *= 3.0
    return z + half.sum()


@written
def views_made_before(x: Tensor) -> Tensor:
    z = torch.zeros(4, 8)
    row, turned, flat = z[1], z.transpose(0, 1), z.view(2, 16)
    before = z + 1
    z.add_(x)
    turned[3] = 5.0
    flat[1, 2:4] = row[2:4]
    return torch.cat([before, z, turned.t(), flat.view(4, 8)], 1) + row.sum()


@written
def rows_by_index(x: Tensor) -> Tensor:
    y = torch.zeros(4, 8)
    index = torch.tensor([2, 0])
    y[index] = x[:2]
    y.index_add_(0, index, x[2:])
    y[y > 0.5] = 0.25
    return y


@written
def results_of_writes(x: Tensor) -> Tensor:
    z = x * 1.0
    first = z.mul_(2.0)
    second = first.add_(x).relu_()
    return z + first * second


@written
def squeezed(x: Tensor) -> Tensor:
    z = x.clone().unsqueeze(1)
    z.squeeze(1)[2] = 0.0
    z[:, 0, 1].fill_(7.0)
    return z.squeeze(1)


@left
def turned_and_reshaped(x: Tensor) -> Tensor:
    z = x.clone()
    copied = z.t().reshape(-1)
    shared = z.reshape(-1)
    z[0, 1] = 9.0
    return torch.stack([copied, shared])


@left
def parts(x: Tensor) -> Tensor:
    z = x.clone()
    a, b = z.chunk(2, 1)
    a.add_(b)
    return z


@left
def of_an_input_copy(x: Tensor) -> Tensor:
    z = x.contiguous()
    return z.clone() + z.expand(4, 8).clone().mul_(2.0).permute(1, 0).sum(0)[None, :1]


def lost(x: Tensor) -> Tensor:
    """What dropout returns is what it was given, which torch.export does not see."""
    z = x * 1.0
    same = F.dropout(z, 0.5, training=False)
    z.add_(1.0)
    return z * same


def is_rewritten(function: Case) -> bool:
    program = torch.export.export(Function(function), (data(4, 8),), strict=False)
    return made_functional(program)


@pytest.mark.parametrize("name", WRITTEN)
def test_writes_are_rewritten_exactly(name: str) -> None:
    """A write is seen by all that share its memory, made before it or after, and no other."""
    assert is_rewritten(WRITTEN[name])
    captured = agree(Function(WRITTEN[name]), data(4, 8))
    assert captured.graph.outputs


@pytest.mark.parametrize("name", LEFT)
def test_what_is_unclear_comes_out_right(name: str) -> None:
    """Where memory may or may not be shared, torch tells, and the result is the same."""
    agree(Function(LEFT[name]), data(4, 8))


@pytest.mark.parametrize("name", ["turned_and_reshaped", "parts"])
def test_what_may_share_is_not_rewritten(name: str) -> None:
    """The rewrite gives up on memory that a call may or may not share."""
    assert not is_rewritten(LEFT[name])


def test_memory_whose_sharing_is_lost_is_refused() -> None:
    """Where torch.export itself takes shared memory for a copy, the difference is seen."""
    assert not is_rewritten(lost)
    with pytest.raises(Unsupported, match="writes in place to what another value shares"):
        capture(Function(lost), (data(4, 8),))


def test_inputs_are_not_written_to() -> None:
    """A model that writes to its input is left to torch, which tells of it."""
    assert not is_rewritten(lambda x: x.add_(1.0))


@pytest.mark.parametrize("name", WRITTEN)
def test_the_rewritten_program_is_a_whole_one(name: str) -> None:
    """torch runs it as it runs any exported program, and it gives what the model gives."""
    x = data(4, 8)
    program = torch.export.export(Function(WRITTEN[name]), (x,), strict=False)
    assert made_functional(program)
    torch.testing.assert_close(program.module()(x), WRITTEN[name](x))
