"""What a model for a microcontroller costs: instructions in QEMU, stack, code, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..compiler.codes import encode
from ..placed import emulated
from ..program import Program
from ..verify import golden
from .timing import Row

SUITE = "mcu"


def rows_of(program: Program, progress: Callable[[str], None]) -> tuple[list[Row], str]:
    """The rows of ``program``, on the samples that it carries, and the C compiler that was used."""
    machine = emulated(program, progress)
    samples = [
        tuple(encode(x, t) for x, t in zip(sample, program.inputs, strict=True))
        for sample in golden(program)[0]
    ]
    machine.many(samples)
    counts = machine.instructions
    shape = ", ".join(map(str, program.inputs))

    def row(
        metric: str, value: float, baseline: str = "", ratio: float = 1, spread: float = 0
    ) -> Row:
        return Row(SUITE, program.name, shape, metric, value, baseline, ratio, spread)

    mean = float(np.mean(counts))
    rows = [
        row("instructions", mean, spread=(max(counts) - min(counts)) / mean),
        row("fewest instructions", min(counts), "mean", min(counts) / mean),
        row("most instructions", max(counts), "mean", max(counts) / mean),
    ]
    names = program.manifest.get("steps", ())
    if names:
        rows += step_rows(row, names, machine.steps, mean)
    weights = f"{program.name}_weights.c"
    code = [s.text + s.data for file, s in machine.sizes.items() if file != weights]
    sizes = {
        "stack bytes": machine.stack_bytes,
        "code bytes": sum(code),
        "weights bytes": machine.sizes[weights].text,
        "arena bytes": program.memory["arena"],
    }
    return rows + [row(metric, value) for metric, value in sizes.items()], machine.compiler


def step_rows(
    row: Callable[..., Row], names: Sequence[str], counts: Sequence[Sequence[int]], whole: float
) -> list[Row]:
    """One row a step, the costliest first: its mean and its share of a run."""
    steps = zip(names, np.array(counts, float).T, strict=True)
    found = [
        row(f"step {name}", c.mean(), "mean", c.mean() / whole, (c.max() - c.min()) / whole)
        for name, c in steps
    ]
    return sorted(found, key=lambda r: -r.value)
