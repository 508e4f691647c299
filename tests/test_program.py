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
from butterflyc.compiler.errors import BadInput
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
