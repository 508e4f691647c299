"""The shipped digits model on ARMs of 64 and of 32 bits, emulated: every mode, and its limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import butterflyc as bc
from butterflyc.check import check, forced_runner
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.lower import cross
from butterflyc.models.checkpoint import digits_calibration, digits_test
from butterflyc.program import Program
from butterflyc.targets.registry import load_core
from butterflyc.verify import observe, relative_errors

from ..digits import digits_model

pytestmark = pytest.mark.slow
IMAGES = 30
TARGETS = "aarch64", "cortex-a76", "armv7a"
MODES = "f32", "a8", "int8"


def compiled(target: str, mode: str, needs_tool: Callable[..., str], turned: bool) -> Program:
    needs_tool(load_core(target).runner)
    if not cross.find_spec("ziglang"):
        needs_tool(load_core(target).toolchain[1])
    example = (torch.zeros(1, 1, 8, 8),)
    calibration = digits_calibration().floats()
    model = digits_model(turned).eval()
    return bc.compile(
        model, example, target=target, mode=mode, calibration=calibration, name="digits"
    )


@pytest.mark.parametrize(
    ("target", "mode", "turned"),
    [
        *((target, mode, False) for target in TARGETS for mode in MODES),
        ("aarch64", "f32", True),
        ("armv7a", "int8", True),
    ],
)
def test_digits(target: str, mode: str, turned: bool, needs_tool: Callable[..., str]) -> None:
    """f32 is within 1e-5 of PyTorch, a8 within its limits, int8 the interpreter's bits."""
    program = compiled(target, mode, needs_tool, turned)
    test = digits_test()
    images, labels = test.floats()[:IMAGES], test.labels[:IMAGES]
    on = program.on("qemu")
    found = check(program, digits_model(turned).eval(), [images], labels, on=on)
    assert found.passed
    assert found.samples == IMAGES
    assert found.max_rel <= {"f32": 1e-5, "a8": 2e-3, "int8": 0}[mode]
    assert found.bit_identical or mode != "int8"
    assert found.routing_agreement is not None
    assert found.routing_agreement >= {"f32": 0.9999, "a8": 0.95, "int8": 0.9}[mode]
    if not turned:
        assert found.accuracy is not None
        assert found.accuracy >= 0.95


def test_experts_are_given_where_they_are_near_ties(needs_tool: Callable[..., str]) -> None:
    """The model with its experts as inputs runs where the program does, and takes others too."""
    program = compiled("aarch64", "f32", needs_tool, False)
    on = program.on("qemu")
    last = program.stages[list(program.stages)[-1]]
    image = digits_test().floats()[:1]
    natural = observe(last, image)
    forced = forced_runner(program, on)
    (got,) = forced.many([(image, *natural.experts)])[0]
    assert relative_errors(got[None], np.stack(interpret(last, image))).max() <= 1e-5
    others = [(experts + 1) % 8 for experts in natural.experts]
    (other,) = forced.many([(image, *others)])[0]
    assert relative_errors(other[None], got[None]).max() > 1e-2
