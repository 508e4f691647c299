"""Integer mode on this machine: the bits of the interpreter, and the accuracy of the floats."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import butterflyc as bc
from butterflyc.compiler.codes import encode
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.checkpoint import digits_calibration, digits_test
from butterflyc.models.vit import ViT, ViTConfig
from butterflyc.program import Program

from ..digits import digits_model

Array = np.ndarray


def in_integers(model: torch.nn.Module, images: Array, threads: int = 1) -> Program:
    """The model in mode int8, with scales by ``images`` [N, C, H, W]."""
    example = (torch.from_numpy(images[:1]),)
    return bc.compile(model.eval(), example, mode="int8", calibration=images, threads=threads)


def results(program: Program, codes: Array) -> Array:
    """What the program gives for each of ``codes``, which is what the interpreter does."""
    found = program(codes)
    last = program.stages["plan_memory"]
    wanted = np.concatenate([interpret(last, code[None])[0] for code in codes])
    np.testing.assert_array_equal(found, wanted)
    return found


@st.composite
def vits(draw: st.DrawFn) -> ViTConfig:
    """Small ViTs of one block, with any depth, shuffle and gates that integer mode has."""
    layer = ButterflyConfig(
        d_model=draw(st.sampled_from([8, 12, 16])),
        d_ff=draw(st.sampled_from([16, 20, 32])),
        experts=draw(st.integers(2, 5)),
        top_k=draw(st.integers(1, 2)),
        layers_in=draw(st.integers(1, 3)),
        layers_out=draw(st.integers(1, 3)),
        transpose_in=draw(st.booleans()),
        gamma_per_row=draw(st.booleans()),
        activation_after=draw(st.booleans()),
        down=draw(st.sampled_from(["float", "ternary"])),
        angle_std=1.0,
    )
    return ViTConfig(
        image=8, channels=1, patch=4, classes=3, d_model=layer.d_model, heads=2, layers=1, mlp=layer
    )


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(vits(), st.integers(0, 99))
def test_random_models_have_the_bits_of_the_interpreter(config: ViTConfig, seed: int) -> None:
    """For fresh images, for the largest codes, and for an image of nothing."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    images = rng.random((4, 1, 8, 8), np.float32)
    program = in_integers(ViT(config), images)
    fresh = encode(rng.random((3, 1, 8, 8), np.float32), program.inputs[0])
    ends = rng.choice(np.array([-127, 0, 127], np.int8), (3, 1, 8, 8))
    results(program, np.concatenate([fresh, ends, np.zeros((1, 1, 8, 8), np.int8)]))


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True])
def test_digits_in_integers(turned: bool, record_property: Callable[[str, object], None]) -> None:
    """All test images: the bits of the interpreter, and at most one point below float32.

    A copy has angles of N(0, 0.5), as no training made them: its results are as near.
    """
    model = digits_model(turned)
    images, labels = digits_test().floats(), digits_test().labels
    program = in_integers(model, digits_calibration().floats())
    found = results(program, encode(images, program.inputs[0])).argmax(-1)
    with torch.no_grad():
        real = model(torch.from_numpy(images)).argmax(-1).numpy()
    right = {"float": int((real == labels).sum()), "integer": int((found == labels).sum())}
    record_property("right", right)
    assert right["integer"] >= right["float"] - 0.01 * len(images), right
