"""A compiled model as a program for a bare machine, which prints what it makes of some inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from butterflyc.compiler.run.bare_metal import build, object_symbols, run
from butterflyc.program import Program

Array = np.ndarray
C_TYPES = {"i8": "int8_t", "i16": "int16_t"}
MAIN = """\
#include "hal.h"
#include "{name}.h"

static const {kind_in} inputs[{count}][{size_in}] = {{
{inputs}
}};
static unsigned char arena[{upper}_ARENA_BYTES] __attribute__((aligned(64)));

int main(void)
{{
    for (int i = 0; i < {count}; ++i) {{
        {kind_out} outputs[{size_out}];
        const uint64_t start = hal_instructions();
        const int status = {name}_predict(inputs[i], outputs, arena);
        const uint64_t end = hal_instructions();
        if (status != 0) return 1;
        hal_print_number((int64_t)(end - start));
        for (int k = 0; k < {size_out}; ++k) {{
            hal_print(" ");
            hal_print_number(outputs[k]);
        }}
        hal_print("\\n");
    }}
    hal_print_number((int64_t)hal_stack_bytes());
    hal_print("\\n");
    return 0;
}}
"""


@dataclass(frozen=True)
class Ran:
    """What a program printed: results [N, ...], instructions of each run, bytes of stack."""

    outputs: Array
    instructions: tuple[int, ...]
    stack_bytes: int
    foreign: frozenset[str]  # symbols that the model's objects ask for


def sources(program: Program) -> dict[str, str]:
    """The C files of a program, by name."""
    sections = program.artefact.sections
    files = [key for key in sections if key.startswith("kernels/src/")]
    return {key.removeprefix("kernels/src/"): sections[key].decode() for key in files}


def run_on(machine: str, program: Program, codes: Array, folder: Path) -> Ran:
    """The program on ``machine`` for each of ``codes`` [N, ...]."""
    (given,), (found,) = program.inputs, program.outputs
    rows = codes.reshape(len(codes), -1)
    main = MAIN.format(
        name=program.name,
        upper=program.name.upper(),
        kind_in=C_TYPES[given.dtype],
        kind_out=C_TYPES[found.dtype],
        count=len(rows),
        size_in=rows.shape[1],
        size_out=found.size,
        inputs=",\n".join("    {" + ", ".join(map(str, row)) + "}" for row in rows),
    )
    files = sources(program)
    elf = build(machine, {**files, "main.c": main}, folder)
    lines = run(machine, elf, timeout=300).checked().text.splitlines()
    numbers = np.array([line.split() for line in lines[:-1]], dtype=np.int64)
    own, foreign = _symbols(machine, folder, [file for file in files if file.endswith(".c")])
    return Ran(
        numbers[:, 1:].reshape(len(rows), *found.shape).astype(found.storage),
        tuple(numbers[:, 0].tolist()),
        int(lines[-1]),
        foreign - own,
    )


def _symbols(machine: str, folder: Path, files: Sequence[str]) -> tuple[set[str], frozenset[str]]:
    own: set[str] = set()
    foreign: set[str] = set()
    for file in files:
        for symbol in object_symbols(machine, folder / f"{file}.o"):
            (foreign if symbol.kind == "U" else own).add(symbol.name)
    return own, frozenset(foreign)
