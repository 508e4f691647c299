"""Programs in mode int8: floats or codes in, floats or codes out, exact against the interpreter."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import butterflyc as bc
from butterflyc.check import _lowered_again, check
from butterflyc.compiler.codes import decode, encode
from butterflyc.compiler.errors import BadInput, UsageError
from butterflyc.compiler.ir import Type
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.vit import ViT, ViTConfig
from butterflyc.program import Program, load
from butterflyc.source import open_model
from butterflyc.verify import verify

IMAGES = np.random.default_rng(0).random((12, 1, 8, 8), np.float32)


def model() -> ViT:
    torch.manual_seed(0)
    layer = ButterflyConfig(d_model=16, d_ff=32, experts=4, top_k=2, angle_std=1.0)
    config = ViTConfig(
        image=8, channels=1, patch=4, classes=5, d_model=16, heads=2, layers=1, mlp=layer
    )
    vit = ViT(config).eval()
    with torch.no_grad():
        vit.blocks[0].mlp.gate.weight.mul_(30)  # scores far apart: the same experts are chosen
    return vit


@cache
def program() -> Program:
    examples = (torch.from_numpy(IMAGES[:1]),)
    return bc.compile(model(), examples, mode="int8", calibration=IMAGES)


def test_floats_give_floats_and_codes_codes() -> None:
    """Codes out of the program stand for the floats that it gives for floats, batch by batch."""
    (image,), (logits,) = program().inputs, program().outputs
    assert (image.dtype, logits.dtype) == ("i8", "i16")
    codes = encode(IMAGES, image)
    found = program()(codes)
    assert (found.dtype, found.shape) == (np.int16, (12, 5))
    real = program()(IMAGES)
    assert real.dtype == np.float32
    np.testing.assert_array_equal(real, decode(found, logits))
    assert isinstance(program()(torch.from_numpy(IMAGES)), torch.Tensor)


def test_results_are_near_the_models() -> None:
    """Within a twelfth of the largest logit, on all but one image that is routed otherwise."""
    with torch.no_grad():
        wanted = model()(torch.from_numpy(IMAGES)).numpy()
    errors = np.abs(program()(IMAGES) - wanted).max(1) / np.abs(wanted).max(1)
    assert np.sort(errors)[-2] < 1 / 12


def test_it_verifies_bit_for_bit(tmp_path: Path) -> None:
    """Against what it carries, its model and each pass; from a file too."""
    outcome = verify(program())
    assert (outcome.passed, outcome.bit_identical, outcome.max_rel) == (True, True, 0)
    assert outcome.samples == 9
    outcome = check(program(), model(), [IMAGES], bisect=True)
    assert (outcome.passed, outcome.bit_identical) == (True, True)
    assert not next(stage for stage in outcome.stages if stage.stage == "quantize").exact
    again = load(program().save(tmp_path / "m.bfly"))
    assert again.inputs == program().inputs
    np.testing.assert_array_equal(again(IMAGES), program()(IMAGES))


def test_the_header_has_the_scales() -> None:
    """A C program can turn its numbers into codes, and codes into numbers."""
    header = program().artefact.section("kernels/bfly.h").decode()
    assert f"#define BFLY_INPUT_SCALE {program().inputs[0].scale!r} " in header
    assert f"#define BFLY_OUTPUT_SCALE {program().outputs[0].scale!r} " in header


def test_values_without_a_code_have_the_nearest_one() -> None:
    """What is beyond the largest code becomes it; NaN, which is near nothing, becomes 0."""
    type = Type("i8", (6,), 0.5)
    x = np.array([np.nan, np.inf, -np.inf, 1e9, 0.25, 0.75])
    assert encode(x, type).tolist() == [0, 127, -127, 127, 0, 2]
    assert encode(np.array([5], np.int8), type).tolist() == [5]
    assert encode(x, Type("f32", (6,))) is x
    assert decode(np.array(3, np.int16), Type("i16", (), 0.5)).shape == ()


def test_without_samples_the_examples_are_taken() -> None:
    """That is told, since these seldom stand for all that may come."""
    said: list[str] = []
    examples = (torch.from_numpy(IMAGES[:1]),)
    bc.compile(model(), examples, mode="int8", progress=said.append)
    assert any("no calibration samples" in line for line in said)


@pytest.mark.parametrize("shape", [(), (4, 8, 8), (0, 1, 8, 8), (3, 1, 8, 7)])
def test_samples_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    """Calibration samples are rows of the one input."""
    examples = (torch.from_numpy(IMAGES[:1]),)
    with pytest.raises(BadInput, match="calibration samples are"):
        bc.compile(model(), examples, mode="int8", calibration=np.zeros(shape, np.float32))


class Numbers(torch.nn.Module):
    """A row of a table for each number."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(9, 4)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.table(numbers)
        return rows


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (np.array([[1.5, 2], [3, 2.25]]), "2 of 4 numbers would change, the first is 1.5"),
        (np.array([[1, np.nan]]), "1 of 2 numbers would change, the first is nan"),
        (np.array([["1", "2"]]), "no numbers"),
    ],
)
def test_samples_that_would_be_cut_are_refused(rows: np.ndarray, what: str) -> None:
    """Floats are not cut to the integers that a model takes, and text is no sample."""
    source = open_model(Numbers(), (torch.zeros(1, 2, dtype=torch.int64),))
    with pytest.raises(BadInput, match=what):
        replace(source, calibration=rows).samples()


@pytest.mark.parametrize("wrong", [1j, 1e300])
def test_samples_that_no_float_holds_are_refused(wrong: complex) -> None:
    """An imaginary part would be dropped, and a huge number become infinite."""
    source = open_model(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    with pytest.raises(BadInput, match="1 of 2 numbers would change"):
        replace(source, calibration=np.array([[0.5, wrong]])).samples()


def test_samples_of_other_types_that_lose_nothing_are_taken() -> None:
    """Whole floats are the integers that a model takes, and integers are floats."""
    source = open_model(Numbers(), (torch.zeros(1, 2, dtype=torch.int64),))
    batches = replace(source, calibration=np.array([[1.0, 2], [3, 4]])).samples()
    assert [batch.tolist() for (batch,) in batches] == [[[1, 2]], [[3, 4]]]
    assert batches[0][0].dtype == np.int64


class Gates(torch.nn.Module):
    """Differences, choices, comparisons, quotients and curves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = x - 0.25 * x.flip(1), torch.maximum(-x, x.mean(1, keepdim=True))
        share = torch.where(low < high, low, torch.minimum(low, high)) / (x * x + 1)
        best = x.argmax(1, keepdim=True)
        return torch.cat([torch.sigmoid(share), torch.tanh(low), x.gather(1, best)], 1)


def test_choices_and_curves_have_the_interpreters_bits() -> None:
    """A model of what gates are made of is compiled, is exact, and near PyTorch."""
    rows = np.random.default_rng(1).normal(size=(20, 8)).astype(np.float32)
    made = bc.compile(Gates(), (torch.from_numpy(rows[:1]),), mode="int8", calibration=rows)
    outcome = verify(made)
    assert (outcome.passed, outcome.bit_identical) == (True, True)
    wanted = Gates()(torch.from_numpy(rows)).numpy()
    assert np.square(made(rows) - wanted).mean() <= 0.003 * np.square(wanted).mean()


def test_weights_of_fewer_digits() -> None:
    """A program keeps its budget: lowered once more it is the same, and a smaller one is told."""
    examples = (torch.from_numpy(IMAGES[:1]),)
    made = bc.compile(model(), examples, mode="int8", calibration=IMAGES, weight_snr=24)
    assert (made.manifest["weight_snr"], program().manifest["weight_snr"]) == (24, 40)
    digits = {each["digits"] for each in made.report["quantization"]["weights"]}
    assert digits == {3, 5}
    source = replace(open_model(model(), examples), calibration=IMAGES)
    again = _lowered_again(made, source, lambda _: None)
    assert str(again["quantize"]) == str(made.stages["quantize"])


@pytest.mark.parametrize(
    ("mode", "budget", "match"),
    [
        ("f32", 40.0, "in mode int8, this is mode f32"),
        ("int8", -1.0, "a signal to noise of -1.0 dB, of at least 0 wanted"),
        ("int8", float("nan"), "a signal to noise of nan dB"),
        ("int8", float("inf"), "a signal to noise of inf dB"),
    ],
)
def test_budgets_that_cannot_be(mode: str, budget: float, match: str) -> None:
    """They are refused before anything is captured."""
    with pytest.raises(UsageError, match=match):
        bc.compile(model(), (torch.from_numpy(IMAGES[:1]),), mode=mode, weight_snr=budget)
