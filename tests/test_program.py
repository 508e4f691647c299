"""A compiled model in Python: what it takes and gives, in which order, and what it refuses."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import butterflyc as bc
from butterflyc.check import check, split_batches
from butterflyc.compiler.errors import BadInput, UnknownName
from butterflyc.program import Program
from butterflyc.verify import verify


class Scored(nn.Module):
    """Takes and returns structures; its chosen places leave as they are."""

    def forward(
        self, x: Tensor, pair: Any, mask: Tensor | None = None, *, scale: float = 1.0
    ) -> Any:
        y = x * scale + 10 * pair[0] + 100 * pair[1]
        y = y if mask is None else y * mask
        values, indices = y.topk(2)
        best = {"values": values, "indices": indices}
        return {"best": best, "all": (y, None), "positive": y > 0, "rows": x.shape[0]}


X, A, B = (torch.randn(2, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
NAMES = ["best.values", "best.indices", "all.0", "positive", "rows"]


@cache
def scored() -> Program:
    return bc.compile(Scored(), {"x": X, "pair": [A, B], "scale": 0.5})


def same(got: Any, x: Tensor = X, a: Tensor = A, b: Tensor = B) -> None:
    wanted = Scored()(x, (a, b), scale=0.5)
    every = (*wanted["best"].values(), wanted["all"][0], wanted["positive"], wanted["rows"])
    for mine, theirs in zip(got, every, strict=True):
        torch.testing.assert_close(torch.as_tensor(mine), torch.as_tensor(theirs))


def test_outputs_are_a_flat_tuple() -> None:
    """Outputs come from front to back, as what came in, and their names are the model's."""
    program = scored()
    assert [port["name"] for port in program.manifest["outputs"]] == NAMES
    assert [port["name"] for port in program.manifest["inputs"]] == ["x", "pair_0", "pair_1"]
    got = program(X, A, B)
    assert all(isinstance(part, Tensor) for part in got)
    same(got)
    got = program(X.numpy(), A.numpy(), B.numpy())
    assert all(isinstance(part, np.ndarray) for part in got)
    same(got)
    same(program(X, torch._neg_view(-A), B.clone().requires_grad_()))


def test_inputs_by_name() -> None:
    """Inputs may be given by name, all of them or those that are left."""
    same(scored()(x=X, pair_1=B, pair_0=A))
    same(scored()(X, pair_1=B, pair_0=A))


@pytest.mark.parametrize(
    ("given", "named", "what"),
    [
        ((X,), {}, "takes 3 inputs, got 1 by place\n"),
        ((X, A), {"x": X}, "got 2 by place and x\n"),
        ((X, A, B, 0.5), {}, "takes 3 inputs, got 4 by place\n"),
        ((X, [A, B], None), {}, "input 1 is a list, which is no array of numbers"),
        ((X, [A, B.clone().requires_grad_()], None), {}, "input 1 is a list, which is no array"),
        ((X, A, None), {}, "input 2 is a NoneType, which is no array of numbers"),
        ((X, A, {"a": B}), {}, "input 2 is a dict, which is no array of numbers"),
        ((X, A, B.bfloat16()), {}, "input 2 is a Tensor, .* BFloat16"),
        ((X, A, B.to("meta")), {}, "input 2 is a Tensor, .* meta"),
        ((X, A, B.double()), {}, r"input 2 is float64\[2, 4\], the model wants float32"),
        ((X, A[:1], B), {}, r"an input has shape \[1, 4\]"),
    ],
)
def test_other_inputs_are_refused(given: Any, named: Any, what: str) -> None:
    """What cannot be an input is told with what can."""
    with pytest.raises(BadInput, match=what) as caught:
        scored()(*given, **named)
    assert caught.value.help


def test_an_unknown_name_lists_the_inputs() -> None:
    """A name that no input has is told with the known ones."""
    with pytest.raises(UnknownName, match="unknown input 'y'") as caught:
        scored()(X, y=A)
    assert "known: pair_0, pair_1, x" in str(caught.value.help)


def test_verification_of_all_kinds(tmp_path: Path) -> None:
    """Such a program verifies by itself, by its program in hand, and by a file."""
    outcome = verify(scored())
    assert (outcome.passed, outcome.routing_agreement) == (True, 1)
    program = torch.export.export(Scored(), (X,), {"pair": [A, B], "scale": 0.5})
    assert check(scored(), program).passed
    torch.export.save(program, tmp_path / "model.pt2")
    assert check(scored(), str(tmp_path / "model.pt2")).passed


def test_the_header_names_the_outputs() -> None:
    """The C header has the model's names of outputs beside their sizes."""
    header = scored().artefact.section("kernels/bfly.h").decode()
    for place, name in enumerate(NAMES):
        assert f"BFLY_OUTPUT{place}_BYTES " in header
        assert f"/* {name}: " in header


class Sum(nn.Module):
    def forward(self, x: Tensor, by: Tensor) -> Any:
        return (x > by).all(), (x * by).sum()


def test_results_without_axes() -> None:
    """Results and inputs without axes are whole: a batch is not split."""
    program = bc.compile(Sum(), (X, torch.tensor(2.0)))
    assert verify(program).passed
    assert check(program, Sum()).passed
    with pytest.raises(BadInput, match="an input has shape"):
        program(torch.cat([X, X]), torch.tensor(2.0))
    with pytest.raises(BadInput, match="samples are"):
        split_batches(program, [X.numpy(), np.float32(2)])
    program = bc.compile(Sum(), (X, torch.tensor([2.0] * 4).expand(2, 4)))
    with pytest.raises(BadInput, match="its samples depend on one another"):
        program(torch.cat([X, X]), torch.cat([X, X]))


class Constant(nn.Module):
    def forward(self) -> Tensor:
        return torch.arange(3)


def test_no_input() -> None:
    """A model without inputs is compiled too, and gives arrays."""
    program = bc.compile(Constant(), ())
    np.testing.assert_array_equal(program(), np.arange(3))
    with pytest.raises(BadInput, match="takes 0 inputs, got 1") as caught:
        program(X)
    assert "none" in str(caught.value.help)


@pytest.mark.parametrize("given", [None, X, 3])
def test_no_example_inputs(given: Any) -> None:
    """Example inputs that are missing, or are no row of arguments, are asked for."""
    with pytest.raises(BadInput, match="example inputs") as caught:
        bc.compile(Scored(), given)
    assert caught.value.help
