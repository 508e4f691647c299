"""What forward writes beside its results: left out where no result depends on it, else refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.errors import Unsupported
from butterflyc.compiler.ir.interpret import interpret

from .agreement import agree, data

HERE = Path(__file__)
OUTSIDE = torch.ones(4)


class Writer(nn.Module):
    def __init__(self, function: Callable[[Writer, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(4))
        self.register_buffer("passing", torch.zeros(4), persistent=False)
        self.plain = torch.ones(4)
        self.number = 0
        self.rows: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:  # forward
        return self.function(self, x)


Case = Callable[[Writer, Tensor], Tensor]
LEFT_OUT: list[Case] = []
REFUSED: list[tuple[Case, str]] = []


def left_out(function: Case) -> Case:
    LEFT_OUT.append(function)
    return function


def refused(what: str) -> Callable[[Case], Case]:
    def enter(function: Case) -> Case:
        REFUSED.append((function, what))
        return function

    return enter


@left_out
def counted(m: Writer, x: Tensor) -> Tensor:
    m.count += x.sum(0)
    return m.linear(x)


@left_out
def counted_aside(m: Writer, x: Tensor) -> Tensor:
    m.passing.add_(1)
    m.plain.mul_(2)
    return x * 2


@left_out
def counted_by_what_is_not_compiled(m: Writer, x: Tensor) -> Tensor:
    m.count.copy_(torch.lgamma(x[0]))
    return x * 2


@left_out
def put_in_place(m: Writer, x: Tensor) -> Tensor:
    m.count = m.count + 1
    return x * 2


@left_out
def overwritten_first(m: Writer, x: Tensor) -> Tensor:
    m.count.copy_(x[0])
    return x * m.count


@left_out
def own_input(m: Writer, x: Tensor) -> Tensor:
    x.add_(1)
    return x * 2


@left_out
def own_input_returned(m: Writer, x: Tensor) -> Tensor:
    return x.mul_(2)


@left_out
def numbered(m: Writer, x: Tensor) -> Tensor:
    m.number += 1
    m.rows.append(m.number)
    return x * 2


@refused("writes to 'count'")
def read_back(m: Writer, x: Tensor) -> Tensor:
    m.count += 1  # read_back
    return x * m.count


@refused("writes to 'count'")
def written_in_part(m: Writer, x: Tensor) -> Tensor:
    m.count[:2] = x[0, :2]  # written_in_part
    return x * m.count


@refused("writes to 'count'")
def exchanged(m: Writer, x: Tensor) -> Tensor:
    m.count = m.count + 1  # exchanged
    return x * m.count


@refused("writes to 'plain'")
def plain_attribute(m: Writer, x: Tensor) -> Tensor:
    m.plain.mul_(2)  # plain_attribute
    return x * m.plain


@refused("writes to 'lifted_tensor_0'")
def from_outside(m: Writer, x: Tensor) -> Tensor:
    OUTSIDE.mul_(2)  # from_outside
    return x * OUTSIDE


@refused("writes to 'linear.weight'")
def parameter(m: Writer, x: Tensor) -> Tensor:
    m.linear.weight.add_(1)  # parameter
    return m.linear(x)


@refused("changes 'number'")
def by_number(m: Writer, x: Tensor) -> Tensor:
    m.number += 1
    return x * m.number


@refused("changes 'rows'")
def by_rows(m: Writer, x: Tensor) -> Tensor:
    m.rows.append(x)
    return x * len(m.rows)


def line(text: str) -> str:
    lines = HERE.read_text().splitlines()
    return next(f"{HERE.name}:{n}" for n, t in enumerate(lines, 1) if t.endswith(f"# {text}"))


@pytest.mark.parametrize("function", LEFT_OUT)
def test_writes_that_change_no_result(function: Case) -> None:
    """The graph gives what every call of the model gives, and the model's state stays as it was."""
    model, x = Writer(function), data(2, 4)
    before = [tensor.clone() for tensor in (*model.buffers(), model.plain, x)]
    agree(model, x)
    for was, now in zip(before, (*model.buffers(), model.plain, x), strict=True):
        assert torch.equal(was, now)
    assert (model.number, model.rows) == (0, [])


@pytest.mark.parametrize("function", [f for f in LEFT_OUT if f is not numbered])
def test_writes_of_an_exported_program(function: Case) -> None:
    """A program that torch.export made is taken the same way, and is left as it was."""
    x = data(2, 4)
    program = torch.export.export(Writer(function), (x,))
    kinds = [spec.kind for spec in program.graph_signature.input_specs]
    (got,) = interpret(capture(program, (x,)).graph, x.numpy())
    assert [spec.kind for spec in program.graph_signature.input_specs] == kinds
    assert np.allclose(got, program.module()(x.clone()).detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize(("function", "what"), REFUSED)
def test_results_of_an_earlier_call_are_refused(function: Case, what: str) -> None:
    """A result that hangs on an earlier call is refused, at the line that writes or at forward."""
    model = Writer(function)
    weight = model.linear.weight.detach().clone()
    with pytest.raises(Unsupported, match=what) as caught:
        capture(model, (data(2, 4),))
    is_python = what.startswith("changes")
    assert caught.value.where == line("forward" if is_python else function.__name__)
    assert "keeps nothing between calls" in str(caught.value.help)
    assert torch.equal(model.linear.weight, weight)


def test_calls_that_torch_cannot_write_out(tmp_path: Path) -> None:
    """Where torch cannot write a call of a saved program out, the call is named with its line."""

    class Sparse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to_sparse()  # sparse

    torch.export.save(torch.export.export(Sparse(), (data(2, 4),)), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    with pytest.raises(Unsupported, match=r"torch cannot write aten\.to_sparse") as caught:
        capture(program, (data(2, 4),))
    assert caught.value.where == line("sparse")
    assert caught.value.help
