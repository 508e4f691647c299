"""Programs whose rotations are by rounded angles: what they say of it, and what they compute."""

from __future__ import annotations

from functools import cache
from typing import Any

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
from butterflyc.targets.experts import experts_of
from butterflyc.verify import verify

ROWS = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
KINDS = ("f16", "i16", "i8")


@cache
def model() -> ButterflyMoE:
    torch.manual_seed(0)
    config = ButterflyConfig(d_model=16, d_ff=32, experts=4, top_k=2, angle_std=1.0)
    return ButterflyMoE(config).eval()


@cache
def program(mode: str = "f32", angles: str | None = None, target: str = "host") -> Program:
    return bc.compile(model(), (ROWS,), mode=mode, angles=angles, target=target)


def error(angles: str | None) -> float:
    """The largest error of a program, relative to the largest result of PyTorch."""
    wanted = model()(ROWS).detach()
    return float((program(angles=angles)(ROWS) - wanted).abs().max() / wanted.abs().max())


def test_the_fewer_bits_the_larger_the_error() -> None:
    """16 bits are nearly none, 8 lose a few thousandths; what was compiled is what is meant."""
    errors = [error(kind) for kind in (None, *KINDS)]
    assert errors[0] < 1e-5 < errors[3] < 0.05
    assert max(errors[1:3]) < 1e-3 < errors[3]
    for kind in KINDS:
        assert verify(program(angles=kind)).passed


def test_bisecting_allows_what_angles_lose() -> None:
    """Against PyTorch itself a program with rounded angles passes, stage by stage."""
    outcome = check(program(angles="i8"), model(), bisect=True)
    assert outcome.passed
    assert outcome.against.startswith("the interpreter")
    assert {s.stage: s.limit for s in outcome.stages}["quantize_angles"] == 0.1


@pytest.mark.parametrize("angles", [None, *KINDS])
def test_a_program_says_its_angles(angles: str | None, tmp_path: Any, capsys: Any) -> None:
    """In its manifest, in what `inspect` shows, and in its stages."""
    made = program(angles=angles)
    assert made.manifest["angles"] == angles
    assert ("quantize_angles" in made.stages) == (angles is not None)
    made.save(tmp_path / "made.bfly")
    assert run(["inspect", str(tmp_path / "made.bfly")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (f"angles {angles}" in shown) == (angles is not None)


def test_a_program_is_lowered_again_with_its_angles() -> None:
    """What `verify --bisect` compares with has them, too."""
    made = program("int8", "i8")
    again = _lowered_again(made, open_model(model(), (ROWS,)), lambda _: None)
    assert str(again["quantize"]) == str(made.stages["quantize"])


@pytest.mark.parametrize(("angles", "each"), [(None, 8), ("i16", 2), ("i8", 1)])
def test_experts_take_less_flash(angles: str | None, each: int) -> None:
    """Bytes of an expert's rotations: 8 a channel as blocks, 2 or 1 as angles."""
    graph = program("int8", angles, "rv32imc").stages["plan_memory"]
    found = experts_of(graph)
    assert found is not None
    turns = [node for node in graph.nodes if node.op in ("integer_turn", "integer_rotate")]
    sizes = sum(graph.constants[str(n.operands[1]["digest"])].nbytes for n in turns)
    assert sizes == 4 * (16 + 32) * each
    router = 16 + 4 + 2  # weights, bias and multiplier of an expert's score
    assert found.bytes_each == sizes // 4 + router


@pytest.mark.parametrize(
    ("mode", "angles", "match"),
    [
        ("int8", "f16", "angles as 'f16' in mode int8, of i8, i16 wanted"),
        ("f32", "i4", "angles as 'i4' in mode f32, of f16, i8, i16 wanted"),
    ],
)
def test_angles_that_cannot_be(mode: str, angles: str, match: str) -> None:
    """They are refused before anything is captured, by `tune` as well."""
    with pytest.raises(UsageError, match=match):
        bc.compile(model(), (ROWS,), mode=mode, angles=angles)
    with pytest.raises(UsageError, match=match):
        bc.tune(model(), (ROWS,), mode=mode, angles=angles, target="host")


def test_gpus_turn_by_rounded_angles() -> None:
    """Their kernels take cosines and sines of the rounded angles."""
    made = program("f16", "i8", "cuda-sm90")
    (node,) = (n for n in made.stages["fuse_layers"].nodes if n.op == "butterfly_layer")
    pairs = made.stages["fuse_layers"].value(node.operands[1])
    codes = np.arctan2(pairs[..., 1], pairs[..., 0]) * (128 / np.pi)
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-6)
