"""One call of a kernel on a CPU that QEMU emulates: its results, and what it executed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import numpy as np

from ...kernels.lanes import Lanes
from ...kernels.layout import pack, storage
from ...kernels.record import Kernel, Spec
from ..ir.types import STORAGE
from ..lower.tir import build_object
from .executions import ARCHITECTURES, Executions, count_executions, static_linker
from .kernel import with_layouts
from .native import ALIGNMENT
from .tools import run_tool

SYMBOL = "kernel"

# The argument is how often the kernel is called: 0 or 1.
MAIN = """\
#include <stdint.h>
#include <stdio.h>

void {symbol}({types});
extern unsigned char {names};

int main(int count, char **words)
{{
    if (count == 2 && words[1][0] == '1')
        {symbol}({arguments});
{writes}    return 0;
}}
"""


@attrs.frozen
class CountedCall:
    """A kernel that was called once: the ``program``, its ``results`` and what that executed.

    ``moved_bytes`` are those of its operands, as packed, and of its results.
    """

    program: bytes
    results: tuple[np.ndarray, ...]
    executions: Executions
    moved_bytes: int


def call_kernel(
    kernel: Kernel,
    spec: Spec,
    arrays: Sequence[np.ndarray],
    lanes: Lanes,
    target: Mapping[str, Any],
    cpu: str = "max",
) -> CountedCall:
    """``kernel`` compiled for ``spec`` and called once on ``arrays``, which are given unpacked.

    ``target`` is TVM's description, of which the triple says whether it is aarch64, arm or x86_64;
    ``cpu`` is QEMU's name of a core. What is counted is what a run that calls the kernel executes
    more than one that does not: the kernel, and what it calls. Raises ToolMissing, ToolFailed.
    """
    named = (name for name in ARCHITECTURES if target["mtriple"].startswith(name))
    architecture = next(named)
    linker = static_linker(architecture)
    spec = with_layouts(kernel, spec, lanes)
    content = build_object({SYMBOL: kernel.build(kernel.opened(spec), lanes, SYMBOL)}, target)
    operands = [
        pack(tensor.layout, array) if tensor.layout else np.ascontiguousarray(array)
        for tensor, array in zip(spec.operands, arrays, strict=True)
    ]
    others = [storage(t) for t in (*spec.results, *kernel.scratch(spec, lanes))]
    filled = [np.zeros(t.shape, STORAGE[t.dtype]) for t in others]
    results = range(len(operands), len(operands) + len(spec.results))
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kernel.o").write_bytes(content)
        _write_program(folder, [*operands, *filled], results, kernel.arguments(spec))
        run_tool([*linker, "-O2", "main.c", "data.S", "kernel.o", "-o", "program"], folder)
        program = folder / "program"
        _, idle = count_executions(architecture, program, ["0"], cpu)
        data, busy = count_executions(architecture, program, ["1"], cpu)
        return CountedCall(
            program.read_bytes(),
            split(data, filled[: len(spec.results)]),
            busy.less(idle),
            sum(array.nbytes for array in (*operands, *filled[: len(spec.results)])),
        )


def _write_program(
    folder: Path, buffers: Sequence[np.ndarray], results: Sequence[int], numbers: Sequence[int]
) -> None:
    """The main program that calls the kernel, and its buffers, which start at cache lines."""
    names = [f"b{i}" for i in range(len(buffers))]
    types = ["void *"] * len(buffers) + ["int32_t"] * len(numbers)
    main = MAIN.format(
        symbol=SYMBOL,
        types=", ".join(types),
        names=", ".join(f"{name}[]" for name in names),
        arguments=", ".join([*names, *map(str, numbers)]),
        writes="".join(f"    fwrite(b{i}, 1, {buffers[i].nbytes}, stdout);\n" for i in results),
    )
    (folder / "main.c").write_text(main)
    write_data(folder, dict(zip(names, buffers, strict=True)))


def write_data(folder: Path, buffers: Mapping[str, np.ndarray]) -> None:
    """``data.S`` in ``folder``: the ``buffers`` by name, each of which starts at a cache line."""
    data = ["  .data"]
    for name, buffer in buffers.items():
        (folder / f"{name}.bin").write_bytes(buffer.tobytes())
        data += [f"  .balign {ALIGNMENT}", f"  .global {name}", f"{name}:"]
        data += [f'  .incbin "{name}.bin"']
    data += ['  .section .note.GNU-stack,"",%progbits']
    (folder / "data.S").write_text("\n".join(data) + "\n")


def split(data: bytes, like: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The arrays, of the shapes and types of ``like``, that were written one after another."""
    found, at = [], 0
    for array in like:
        part = np.frombuffer(data, array.dtype, array.size, at)
        found.append(part.reshape(array.shape))
        at += array.nbytes
    return tuple(found)
