"""Whole models on the machines of microcontrollers: every bit, and what they may take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import butterflyc as bc
from butterflyc.compiler.codes import encode
from butterflyc.compiler.run.bare_metal import available
from butterflyc.models.checkpoint import digits_calibration, digits_test
from butterflyc.models.vit import butterfly_vit

from ..digits import digits_model
from .firmware import prediction_error, run_on
from .test_mcu import ALLOWED, MACHINES, wanted

pytestmark = pytest.mark.slow
Record = Callable[[str, object], None]
Counted = Callable[[str, str, float], None]

IMAGES = 100
MOST_INSTRUCTIONS = {"rv32imc": 60_000_000, "cortex-m4": 34_000_000}
MOST_STACK = 1536


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("machine", MACHINES)
def test_digits(
    machine: str,
    turned: bool,
    tmp_path: Path,
    needs_tool: Callable[..., str],
    record_property: Record,
    counted: Counted,
) -> None:
    """A hundred test images of the digits model: the interpreter's bits, and its limits kept.

    What it takes was predicted within 10 %.

    ``--junitxml=FILE`` holds what was counted.
    """
    _need(machine, needs_tool)
    images = digits_test().floats()
    calibration = digits_calibration().floats()
    example = (torch.from_numpy(images[:1]),)
    model = digits_model(turned).eval()
    program = bc.compile(model, example, target=machine, name="digits", calibration=calibration)
    codes = encode(images[:IMAGES], program.inputs[0])
    ran = run_on(machine, program, codes, tmp_path)
    instructions = int(np.mean(ran.instructions))
    record_property("instructions", instructions)
    record_property("stack_bytes", ran.stack_bytes)
    record_property("arena_bytes", program.memory["arena"])
    error = prediction_error(program, instructions)
    record_property("prediction_error", error)
    assert abs(error) <= 0.1
    np.testing.assert_array_equal(ran.outputs, wanted(program, codes))
    assert program.memory["arena"] <= 18 << 10
    assert ran.foreign <= ALLOWED
    assert ran.stack_bytes <= MOST_STACK
    if not turned:
        assert instructions <= MOST_INSTRUCTIONS.get(machine, instructions)
        counted(machine, "digits", instructions)


@pytest.mark.parametrize(
    ("target", "machine", "weight_snr"),
    [("rv32imc", "rv32imc", None), ("esp32s3", "esp32", None), ("esp32", "esp32", 24.0)],
)
def test_the_model_of_the_papers(
    target: str,
    machine: str,
    weight_snr: float | None,
    tmp_path: Path,
    needs_tool: Callable[..., str],
    record_property: Record,
    counted: Counted,
) -> None:
    """The CIFAR model with fresh weights, on one image of noise; predicted within 10 %.

    An ESP32-S3 holds it; the instruction set here is that of its elder, which holds it too where
    weights have fewer digits.
    """
    _need(machine, needs_tool)
    torch.manual_seed(0)
    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    example = (torch.from_numpy(images[:1]),)
    program = bc.compile(
        butterfly_vit().eval(),
        example,
        target=target,
        name="paper",
        calibration=images,
        weight_snr=weight_snr,
    )
    codes = encode(images[:1], program.inputs[0])
    ran = run_on(machine, program, codes, tmp_path)
    record_property("instructions", ran.instructions[0])
    record_property("stack_bytes", ran.stack_bytes)
    record_property("arena_bytes", program.memory["arena"])
    error = prediction_error(program, ran.instructions[0])
    record_property("prediction_error", error)
    assert abs(error) <= 0.1
    np.testing.assert_array_equal(ran.outputs, wanted(program, codes))
    assert program.memory["arena"] <= 62 << 10
    assert program.memory["arena"] <= 1.05 * program.memory["arena_lower_bound"]
    assert ran.stack_bytes <= MOST_STACK
    budget = f", {weight_snr:g} dB" if weight_snr else ""
    counted(machine, f"the papers' model{budget}", ran.instructions[0])


def _need(machine: str, needs_tool: Callable[..., str]) -> None:
    for missing in available(machine):
        needs_tool(missing.tool)
