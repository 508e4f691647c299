"""A compiled model on an emulated machine, with what a test asks of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from butterflyc.placed import c_files as sources
from butterflyc.program import Program

__all__ = ["Ran", "prediction_error", "run_on", "sources"]
Array = np.ndarray


@dataclass(frozen=True)
class Ran:
    """Results [N, ...], instructions of each run, bytes of stack, symbols asked of others."""

    outputs: Array
    instructions: tuple[int, ...]
    stack_bytes: int
    foreign: frozenset[str]


def run_on(machine: str, program: Program, codes: Array, folder: Path) -> Ran:
    """The program on ``machine``, its own, for each of ``codes`` [N, ...]."""
    on = program.on("qemu")
    assert on.emulated is not None
    assert on.emulated.machine == machine
    outputs = np.stack([outputs[0] for outputs in on.run_each([(code[None],) for code in codes])])
    return Ran(outputs, on.instructions, on.emulated.stack_bytes, on.emulated.foreign)


def prediction_error(program: Program, instructions: float) -> float:
    """By which part of them the report's prediction is off."""
    assert program.placement
    predicted = program.placement["instructions"]["total"]
    assert predicted, "a step has no price"
    return float(predicted / instructions - 1)
