"""Programs in mode a8 with activations of 7 bits: what they say of it, and what they compute."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import butterflyc as bc
from butterflyc.check import _lowered_again, check
from butterflyc.cli.app import run
from butterflyc.compiler.errors import UsageError
from butterflyc.models.butterfly import ButterflyConfig, ButterflyMoE
from butterflyc.program import Program
from butterflyc.source import open_model
from butterflyc.verify import verify

ROWS = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))


@cache
def model() -> ButterflyMoE:
    torch.manual_seed(0)
    config = ButterflyConfig(d_model=16, d_ff=32, experts=4, top_k=2, angle_std=1.0)
    return ButterflyMoE(config).eval()


@cache
def program(bits: int | None) -> Program:
    return bc.compile(model(), (ROWS,), mode="a8", act_bits=bits)


@pytest.mark.parametrize(("asked", "bits"), [(None, 8), (8, 8), (7, 7)])
def test_a_program_says_its_bits(asked, bits, tmp_path, capsys):
    """They stand in the manifest, in what `inspect` shows and on the op; 8 where none are asked."""
    made = program(asked)
    made.save(tmp_path / "made.bfly")
    assert made.manifest["act_bits"] == bits
    assert run(["inspect", str(tmp_path / "made.bfly")]) == 0
    assert f"act_bits  {bits}" in capsys.readouterr().out
    last = list(made.stages.values())[-1]
    said = [n["activation_bits"] for n in last.nodes if n.op == "butterfly_experts"]
    assert said == [bits]


def test_seven_bits_are_computed_as_interpreted() -> None:
    """The program passes against the interpreter, and is not that of 8 bits."""
    assert verify(program(7)).passed
    seven, eight, exact = (
        np.asarray(got) for got in (program(7)(ROWS), program(8)(ROWS), model()(ROWS).detach())
    )
    errors = [np.abs(got - exact).max() / np.abs(exact).max() for got in (seven, eight)]
    assert 0 < errors[1] < errors[0] < 0.05


def test_a_program_is_lowered_again_with_its_bits() -> None:
    """What `verify --bisect` compares with has the bits of the program."""
    again = _lowered_again(program(7), open_model(model(), (ROWS,)), lambda _: None)
    assert str(again["quantize_activations"]) == str(program(7).stages["quantize_activations"])


def test_bisecting_allows_twice_the_error() -> None:
    """Of 7 bits the pass that quantises may change results by 0.1, of 8 by 0.05."""
    for bits, limit in ((8, 0.05), (7, 0.1)):
        outcome = check(program(bits), model(), bisect=True)
        limits = {stage.stage: stage.limit for stage in outcome.stages}
        assert limits["quantize_activations"] == limit
        assert outcome.passed


@pytest.mark.parametrize(
    ("mode", "bits", "match"),
    [
        ("f32", 7, "codes of 7 bits in mode a8, this is mode f32"),
        ("int8", 8, "in mode a8, this is mode int8"),
        ("a8", 6, "activations of 6 bits, of 7 or 8 wanted"),
    ],
)
def test_bits_that_cannot_be(mode: str, bits: int, match: str) -> None:
    """They are refused before anything is captured."""
    with pytest.raises(UsageError, match=match):
        bc.compile(model(), (ROWS,), mode=mode, act_bits=bits)


def test_other_modes_have_no_such_bits() -> None:
    """The manifest of a program in f32 says none."""
    assert bc.compile(model(), (ROWS,)).manifest["act_bits"] is None


def test_the_command_takes_them(tmp_path, capsys) -> None:
    """`compile --act-bits` reaches the compiler, whose refusal is a usage error."""
    line = ["compile", "models/digits.safetensors", "--act-bits", "7", "-o", str(tmp_path / "x")]
    assert run(line) == 2
    assert "this is mode f32" in capsys.readouterr().err
