"""Models that check their data: the checks are left out, and all else that asks about it stays.

PYTEST_DONT_REWRITE: the assertions here are those of models.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.errors import Unsupported

from .agreement import Function, agree, data


def finite(x: Tensor) -> Tensor:
    assert torch.isfinite(x).all(), "inputs must be finite"
    return x.tanh()


def no_nan(x: Tensor) -> Tensor:
    assert not torch.isnan(x).any()
    return x.tanh()


def raising(x: Tensor) -> Tensor:
    if torch.isnan(x).any() or x.abs().max().item() > 1e4:
        raise ValueError("this is no signal")
    return x.tanh()


def over_lines(x: Tensor) -> Tensor:
    assert (  # noqa: PT018
        x.min() > -100
        and x.max() < 100
    )  # fmt: skip
    return x.tanh()


def numbers(x: Tensor) -> Tensor:
    experts = x.argmax(-1)
    assert 0 <= experts.min() <= int(experts.max()) < x.shape[-1]
    counts = torch.bincount(experts, minlength=x.shape[-1]).tolist()
    assert sum(counts) == len(x), f"{counts} of {len(x)}"
    return x * experts[:, None]


def of_torch(x: Tensor) -> Tensor:
    torch._assert((x < 100).all(), "too large")
    assert torch.allclose(x.softmax(-1).sum(-1), torch.ones(len(x)))
    assert torch.equal(x, x)
    return x.tanh()


def within(x: Tensor) -> Tensor:
    return finite(x) + no_nan(x)


CHECKED = [finite, no_nan, raising, over_lines, numbers, of_torch, within]


@pytest.mark.parametrize("function", CHECKED, ids=lambda f: f.__name__)
def test_checks_are_left_out(function: Callable[[Tensor], Tensor]) -> None:
    """What only fails on bad data is no question that the graph must answer; it is told."""
    said: list[str] = []
    agree(Function(function), data(4, 5))
    capture(Function(function), (data(4, 5),), progress=said.append)
    assert any("leaving out the checks of data at test_asserted.py:" in line for line in said)


def caught(x: Tensor) -> Tensor:
    try:
        if x.max() > 100:
            raise ValueError
    except ValueError:
        return x
    return x.tanh()


def caught_outside(x: Tensor) -> Tensor:
    try:
        return raising(x)
    except ValueError:
        return x


def mixed(x: Tensor) -> Tensor:
    assert x.max() < 100 or not x.min() < 0
    return x.tanh()


def with_else(x: Tensor) -> Tensor:
    if x.max() > 100:
        raise ValueError
    elif x.max() > 1:
        x = x / 2
    return x.tanh()


def after_a_note(x: Tensor) -> Tensor:
    if x.max() > 100:
        x = x.clamp(max=100)
        raise ValueError
    return x.tanh()


KEPT = [caught, caught_outside, mixed, with_else, after_a_note]


@pytest.mark.parametrize("function", KEPT, ids=lambda f: f.__name__)
def test_what_is_more_than_a_check_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    """A failure that is caught, or a branch that does more than fail, is control flow on data."""
    with pytest.raises(Unsupported, match=r"hangs on data|only the data tells|asks whether"):
        capture(Function(function), (data(4, 5),))
