"""Microcontrollers: C that runs on each machine, with the bits of the interpreter."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import butterflyc as bc
from butterflyc.compiler.codes import encode
from butterflyc.compiler.errors import Incompatible, UsageError
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.run.bare_metal import available
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.vit import ViT, ViTConfig
from butterflyc.program import Program

from .firmware import run_on, sources

MACHINES = ["rv32imc", "cortex-m4", "esp32"]
# What a compiler makes of loops and of copies; every C environment has these.
ALLOWED = {"memcpy", "memset", "memmove"}
IMAGES = np.random.default_rng(0).random((8, 1, 8, 8), np.float32)


@pytest.fixture(autouse=True, params=MACHINES)
def machine(request: pytest.FixtureRequest, needs_tool: Callable[..., str]) -> str:
    """Each machine whose tools are there."""
    name = str(request.param)
    for missing in available(name):
        needs_tool(missing.tool)
    return name


@cache
def compiled(config: ViTConfig, seed: int, target: str, angles: str | None = None) -> Program:
    torch.manual_seed(seed)
    asked = {"target": target, "calibration": IMAGES, "angles": angles, "name": "vit"}
    return bc.compile(ViT(config).eval(), (torch.from_numpy(IMAGES[:1]),), **asked)


def config(layer: ButterflyConfig) -> ViTConfig:
    return ViTConfig(
        image=8, channels=1, patch=4, classes=3, d_model=layer.d_model, heads=2, layers=1, mlp=layer
    )


SMALL = config(ButterflyConfig(d_model=16, d_ff=32, experts=4, top_k=2, angle_std=1.0))


def inputs_of(program: Program, seed: int) -> np.ndarray:
    """Codes of fresh images, nothing but the largest codes, and none."""
    rng = np.random.default_rng(seed)
    fresh = encode(rng.random((2, 1, 8, 8), np.float32), program.inputs[0])
    ends = rng.choice(np.array([-127, 0, 127], np.int8), (2, 1, 8, 8))
    return np.concatenate([fresh, ends, np.zeros((1, 1, 8, 8), np.int8)])


def wanted(program: Program, codes: np.ndarray) -> np.ndarray:
    last = program.stages["plan_memory"]
    return np.stack([interpret(last, code[None])[0] for code in codes])


def test_a_small_model_has_the_bits_of_the_interpreter(machine: str, tmp_path: Path) -> None:
    """On every machine; it calls no library, and takes as many instructions each time."""
    program = compiled(SMALL, 0, machine)
    codes = inputs_of(program, 1)
    ran = run_on(machine, program, np.concatenate([codes, codes]), tmp_path)
    np.testing.assert_array_equal(ran.outputs, np.tile(wanted(program, codes), (2, 1, 1)))
    assert ran.foreign <= ALLOWED
    assert ran.stack_bytes <= 1536
    # To the instruction but for where register windows spill, which hangs on the depth of calls.
    assert abs(ran.instructions[5] - ran.instructions[0]) <= 100


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([8, 12, 16]), st.sampled_from([16, 20]), st.integers(2, 4), st.booleans(),
    st.sampled_from(["float", "ternary"]), st.integers(0, 99),
)  # fmt: skip
def test_random_models(
    machine: str,
    tmp_path_factory: pytest.TempPathFactory,
    d: int,
    f: int,
    experts: int,
    turned: bool,
    down: str,
    seed: int,
) -> None:
    """Models of any width, depth and handedness have the bits of the interpreter."""
    layer = ButterflyConfig(
        d_model=d,
        d_ff=f,
        experts=experts,
        top_k=2,
        layers_in=seed % 3 + 1,
        layers_out=seed % 2 + 1,
        transpose_in=turned,
        gamma_per_row=not turned,
        down=down,  # type: ignore[arg-type]
        angle_std=1.0,
    )
    program = compiled(config(layer), seed, machine)
    codes = inputs_of(program, seed)
    ran = run_on(machine, program, codes, tmp_path_factory.mktemp("random"))
    np.testing.assert_array_equal(ran.outputs, wanted(program, codes))


@pytest.mark.parametrize("angles", ["i8", "i16"])
def test_angles_have_the_bits_of_the_interpreter(machine: str, angles: str, tmp_path: Path) -> None:
    """Rotations by angles in place of blocks, of one layer of turns and of two."""
    layer = ButterflyConfig(16, 32, 4, 2, layers_in=1, layers_out=2, angle_std=1.0)
    program = compiled(config(layer), 0, machine, angles)
    ops = [node.op for node in program.stages["plan_memory"].nodes]
    assert (ops.count("integer_turn"), ops.count("integer_rotate")) == (2, 0)
    codes = inputs_of(program, 1)
    ran = run_on(machine, program, codes, tmp_path)
    np.testing.assert_array_equal(ran.outputs, wanted(program, codes))
    assert ran.foreign <= ALLOWED


def test_the_c_has_no_warnings(machine: str, tmp_path: Path) -> None:
    """Strict C99 compilers, and C++ ones for the headers, have nothing to say."""
    program = compiled(SMALL, 0, machine, "i16")
    for name, text in sources(program).items():
        (tmp_path / name).write_text(text)
    strict = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    files = [name for name in sources(program) if name.endswith(".c")]
    compilers = [c for c in ("gcc", "clang-22") if shutil.which(c)]
    assert compilers
    for compiler in compilers:
        subprocess.run([compiler, "-std=c99", *strict, *files], cwd=tmp_path, check=True)
    both = '#include "vit.h"\n#include "vit_kernels.h"\n'
    (tmp_path / "both.cpp").write_text(both)
    subprocess.run(["g++", "-std=c++11", *strict, "both.cpp"], cwd=tmp_path, check=True)


def test_what_such_a_program_cannot_do_here(machine: str) -> None:
    """It does not run on this machine, and has no mode but int8: both are told."""
    with pytest.raises(Incompatible, match=f"compiled for {machine}") as caught:
        compiled(SMALL, 0, machine)(IMAGES[:1])
    assert "--target host --mode int8" in str(caught.value.help)
    examples = (torch.from_numpy(IMAGES[:1]),)
    with pytest.raises(UsageError, match="has no mode 'f32'") as wrong:
        bc.compile(ViT(SMALL).eval(), examples, target=machine, mode="f32")
    assert "modes: int8" in str(wrong.value.help)
