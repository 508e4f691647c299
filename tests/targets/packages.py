"""Models that are compiled for the tests of packages, and C programs for this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

import butterflyc as bc
from butterflyc.compiler.codes import encode
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.vit import ViT, ViTConfig
from butterflyc.program import Program

STAND_INS = Path(__file__).parent / "stand_ins"
IMAGES = np.random.default_rng(0).random((8, 1, 8, 8), np.float32)
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


@cache
def compiled(target: str, name: str = "vit", experts: int = 2, threads: int = 1) -> Program:
    """A small model; another number of experts, or another name, is another one."""
    torch.manual_seed(experts)
    layer = ButterflyConfig(d_model=8, d_ff=16, experts=experts, top_k=2, angle_std=1.0)
    config = ViTConfig(
        image=8, channels=1, patch=4, classes=3, d_model=8, heads=2, layers=1, mlp=layer
    )
    examples = (torch.from_numpy(IMAGES[:1]),)
    return bc.compile(
        ViT(config).eval(),
        examples,
        target=target,
        calibration=IMAGES,
        name=name,
        threads=threads,
    )


def write_package(program: Program, folder: Path) -> Path:
    """The files of a package, without its artefact."""
    for section, content in program.artefact.sections.items():
        if section.startswith("kernels/"):
            path = folder / section.removeprefix("kernels/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder


def packed_sources(program: Program) -> dict[str, str]:
    """The C files of a package, by name."""
    sections, folder = program.artefact.sections, "kernels/src/"
    return {
        key.removeprefix(folder): content.decode()
        for key, content in sections.items()
        if key.startswith(folder)
    }


def codes_and_outputs(
    program: Program, images: np.ndarray = IMAGES[:3]
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs as codes [N, ...], and the interpreter's outputs for them [N, ...]."""
    codes = encode(images, program.inputs[0])
    last = program.stages["plan_memory"]
    return codes, np.stack([interpret(last, code[None])[0] for code in codes])


def c_array(kind: str, name: str, values: np.ndarray) -> str:
    """A constant array [N, size] as C."""
    rows = values.reshape(len(values), -1)
    lines = ",\n".join("    {" + ", ".join(map(str, row)) + "}" for row in rows)
    return f"static const {kind} {name}[{len(rows)}][{rows.shape[1]}] = {{\n{lines}\n}};\n"


def run_here(folder: Path, sources: Sequence[str], flags: Sequence[str] = ()) -> tuple[int, str]:
    """The status and the output of a C program for this machine."""
    command = ["gcc", "-std=c99", "-O1", *STRICT, "-Isrc", *flags, *sources, "-o", "program"]
    subprocess.run(command, cwd=folder, check=True)
    done = subprocess.run(["./program"], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout
