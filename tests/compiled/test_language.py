"""Language models compiled: every layer's experts found, and what PyTorch computes, computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import butterflyc as bc
from butterflyc.check import check
from butterflyc.compiler.lower import cross
from butterflyc.compiler.run.bare_metal import available
from butterflyc.models.butterfly import ButterflyConfig, linear_form
from butterflyc.models.checkpoint import save_checkpoint
from butterflyc.models.generation import generate
from butterflyc.models.language import DecodeStep, LanguageConfig, LanguageModel
from butterflyc.program import Program
from butterflyc.targets.registry import load_core

pytestmark = pytest.mark.slow
TOKENS = np.random.default_rng(0).integers(0, 256, (12, 16))
FORMS: dict[str, ButterflyConfig] = {
    "gelu": ButterflyConfig(32, 64, experts=4, gate="topk_softmax", angle_std=1.0),
    "linear": linear_form(
        32, 32, experts=4, layers_in=5, layers_out=5, gate="topk_softmax", angle_std=1.0
    ),
}


def model(form: str) -> LanguageModel:
    """Two layers of width 32 with four experts each, that see 16 bytes."""
    torch.manual_seed(0)
    config = LanguageConfig(context=16, d_model=32, heads=2, layers=2, mlp=FORMS[form])
    return LanguageModel(config).eval()


def compiled(form: str, target: str, mode: str) -> Program:
    """That model for one text of 16 bytes; all experts of both layers are found in it."""
    example = (torch.from_numpy(TOKENS[:1]),)
    calibration = TOKENS if mode == "int8" else None
    program = bc.compile(model(form), example, target=target, mode=mode, calibration=calibration)
    wanted = {"layers": 2, "recognised": 2, "found": 8, "choosable": 8}
    assert program.census == wanted
    return program


@pytest.mark.parametrize("form", FORMS)
def test_on_this_machine(form: str) -> None:
    """In float32, within 1e-5 of PyTorch at every byte; texts of a batch are computed apart."""
    program = compiled(form, "host", "f32")
    found = check(program, model(form), [TOKENS])
    assert found.passed
    assert found.max_rel <= 1e-5
    assert program(torch.from_numpy(TOKENS[:3])).shape == (3, 16, 256)


@pytest.mark.parametrize(
    ("target", "form", "mode"),
    [
        ("cortex-a72", "gelu", "f32"),
        ("cortex-a72", "linear", "f32"),
        ("cortex-a72", "gelu", "int8"),
        ("rv32imc", "gelu", "int8"),
        ("rv32imc", "linear", "int8"),
    ],
)
def test_on_others(target: str, form: str, mode: str, needs_tool: Callable[..., str]) -> None:
    """Emulated, f32 is within 1e-5 of PyTorch, and int8 has the interpreter's bits."""
    if target == "rv32imc":
        for missing in available(target):
            needs_tool(missing.tool)
    else:
        needs_tool(load_core(target).runner)
        if not cross.find_spec("ziglang"):
            needs_tool(load_core(target).toolchain[1])
    program = compiled(form, target, mode)
    found = check(program, model(form), [TOKENS[:3]], on=program.on("qemu"))
    assert found.passed
    assert found.max_rel <= (1e-5 if mode == "f32" else 0)


def test_a_step_with_its_cache() -> None:
    """Compiled, a step writes the bytes that PyTorch writes, beyond what its slots hold."""
    lm = model("gelu")
    step = DecodeStep(lm).eval()
    first = torch.zeros(1, dtype=torch.int64)
    program = bc.compile(step, (first, first, *step.empty()))
    assert program.census["found"] == 8
    assert generate(lm, b"def ", 40, step=program) == generate(lm, b"def ", 40)


def test_from_a_checkpoint(tmp_path: object) -> None:
    """A checkpoint compiles by its path, and is calibrated on the text in it."""
    path = tmp_path / "lm.safetensors"  # type: ignore[operator]
    save_checkpoint(path, model("gelu"), text={"calibration": TOKENS.astype(np.uint8)})
    program = bc.compile(str(path), mode="int8")
    assert program.census["found"] == 8
    again = compiled("gelu", "host", "int8")
    np.testing.assert_array_equal(program(TOKENS), again(TOKENS))
