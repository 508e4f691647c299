"""The model of the papers on ARMs of 64 and of 32 bits, emulated: every mode, and its limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import butterflyc as bc
from butterflyc.check import check
from butterflyc.compiler.codes import interpret_real
from butterflyc.compiler.lower import cross
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.vit import ViT, ViTConfig
from butterflyc.targets.registry import load_core
from butterflyc.verify import relative_errors

pytestmark = pytest.mark.slow
IMAGES = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)


# In float32 the cores of 64 bits differ in nothing but the order of instructions.
@pytest.mark.parametrize(
    ("target", "mode"),
    [
        *((target, mode) for target in ("cortex-a72", "armv7a") for mode in ("f32", "a8", "int8")),
        *((target, mode) for target in ("cortex-a53", "cortex-a76") for mode in ("a8", "int8")),
    ],
)
def test_the_model_of_the_papers(target: str, mode: str, needs_tool: Callable[..., str]) -> None:
    """f32 is within 1e-5 of PyTorch, a8 within 2e-3 of the interpreter, int8 gives its bits."""
    needs_tool(load_core(target).runner)
    if not cross.find_spec("ziglang"):
        needs_tool(load_core(target).toolchain[1])
    torch.manual_seed(0)
    model = ViT(ViTConfig(mlp=ButterflyConfig(angle_std=0.5))).eval()
    example = (torch.from_numpy(IMAGES[:1]),)
    program = bc.compile(model, example, target=target, mode=mode, calibration=IMAGES, name="paper")
    on = program.on("qemu")
    if mode == "f32":
        found = check(program, model, [IMAGES[:2]], on=on)
        assert found.passed
        assert found.max_rel <= 1e-5
        return
    last = program.stages[list(program.stages)[-1]]
    for image in (IMAGES[:1], IMAGES[1:2]):
        (got,) = on.run(image)
        wanted = interpret_real(last, image)[0]
        if mode == "int8":
            np.testing.assert_array_equal(got, wanted)
        else:
            assert relative_errors(got, wanted).max() <= 2e-3
