"""One call of a kernel on a machine that QEMU emulates: its results, and what it costs, exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import numpy as np

from ...kernels.lanes import Lanes
from ...kernels.layout import pack, storage
from ...kernels.record import Kernel, Spec, Tensor
from ..errors import UsageError
from ..files import make_folder
from ..ir.types import STORAGE
from ..lower.emit_c import emit, emit_header, lower_for_c
from ..lower.work import work_of
from .bare_metal import ProgramFailed, build, run, sizes
from .kernel import with_layouts

# What results and scratch hold before a call, and what stays behind them: no kernel relies on it.
BYTE = 0xA7

# The clocks of some machines start anew after 1,300,000,000 instructions, as `hal.h` says, which
# nobody would see. So much work takes fewer, by the prices of all kernels (`targets/prices/`), but
# for copies, of which so many have no room.
MOST_WORK = 300_000_000

# Why the count is exact: QEMU's clock goes on by instructions and by nothing else, so a first call
# costs what any does. The kernel is called once, and finds its operands as they were given. What
# calling costs is taken off: before, from the same instruction, what does nothing is called.
MAIN = """\
#include "hal.h"
#include "kernel.h"

{buffers}
static void fill(void *bytes, size_t size)
{{
    for (size_t i = 0; i < size; i++)
        ((volatile unsigned char *)bytes)[i] = {byte};
}}

static void nothing({types}) {{ {unused} }}

typedef void (*Kernel)({types});
static Kernel volatile called;

static __attribute__((noinline)) uint64_t counted(void)
{{
    const uint64_t start = hal_instructions();
    called({arguments});
    return hal_instructions() - start;
}}

int main(void)
{{
{fills}    called = nothing;
    counted(); /* so that the next ones find all alike */
    const uint64_t calling = counted();
    called = (Kernel)kernel;
    const uint64_t spent = counted() - calling;
    hal_write(&spent, sizeof spent);
{writes}    return 0;
}}
"""


@attrs.frozen
class BareCall:
    """A kernel that was called once: its ``results``, and the ``instructions`` of that.

    ``scratch_bytes`` are those of its buffers beside operands and results, ``code_bytes`` those of
    its code and its own constants.
    """

    results: tuple[np.ndarray, ...]
    instructions: int
    scratch_bytes: int
    code_bytes: int


def call_on_machine(
    machine: str,
    kernel: Kernel,
    spec: Spec,
    arrays: Sequence[np.ndarray],
    lanes: Lanes,
    timeout: float = 60.0,
) -> BareCall:
    """``kernel`` built for ``spec`` and called once on ``arrays``, which are given unpacked.

    Operands lie among the program's constants, results and scratch among its variables. Raises
    UsageError for arrays of other types than the spec's, and for more work than can be counted;
    ProgramFailed if the kernel traps, writes behind a buffer or does not end in ``timeout``
    seconds; ToolFailed if the machine has too little memory for it; and what `bare_metal.build` and
    `run` do.
    """
    tensors = with_layouts(kernel, spec, lanes).operands
    if len(tensors) != len(arrays):
        raise UsageError(f"{len(arrays)} arrays, {spec.op} has {len(tensors)} operands here")
    operands = [_packed(i, *pair) for i, pair in enumerate(zip(tensors, arrays, strict=True))]
    with TemporaryDirectory() as folder:
        return call_packed(machine, kernel, spec, operands, lanes, Path(folder), timeout)


def call_packed(
    machine: str,
    kernel: Kernel,
    spec: Spec,
    operands: Sequence[np.ndarray],
    lanes: Lanes,
    folder: Path,
    timeout: float = 60.0,
) -> BareCall:
    """The same for ``operands`` that are packed as the kernel wants them; built in ``folder``."""
    spec = with_layouts(kernel, spec, lanes)
    function = kernel.build(kernel.opened(spec), lanes, "kernel")
    _check_work(kernel, function)
    lowered = [lower_for_c(function)]
    results = [_empty(tensor) for tensor in spec.results]
    scratch = [_empty(tensor) for tensor in kernel.scratch(spec, lanes)]
    sources = {
        "main.c": _main(len(operands), results, scratch, kernel.arguments(spec)),
        "operands.s": "".join(_placed(operands, folder)),
        "kernel.c": emit(lowered),
        "kernel.h": emit_header(lowered, "K_H"),
    }
    output = run(machine, build(machine, sources, folder), timeout).checked()
    instructions = _read(output.data, kernel, results, scratch)
    return BareCall(
        tuple(results),
        instructions,
        sum(buffer.nbytes for buffer in scratch),
        sizes(machine, folder / "kernel.c.o").text,
    )


def _check_work(kernel: Kernel, function: Any) -> None:
    """Where data decide how often loops turn, nothing is known, and the time limit must do."""
    work = work_of(function)
    if work is not None and (total := sum(work.values())) > MOST_WORK:
        raise UsageError(
            f"a call of {kernel.name} is {total:,.0f} loads, products and the like here, of "
            f"{MOST_WORK:,} that can be counted",
            help="count fewer rows at a time",
        )


def _packed(i: int, tensor: Tensor, array: np.ndarray) -> np.ndarray:
    """``array`` as it lies in memory."""
    if array.shape != tensor.shape or array.dtype != STORAGE[tensor.dtype]:
        raise UsageError(
            f"operand {i} is {array.dtype}{list(array.shape)}, the kernel is asked for {tensor}",
            help=f"give {STORAGE[tensor.dtype]}{list(tensor.shape)}",
        )
    return pack(tensor.layout, array) if tensor.layout else np.ascontiguousarray(array)


def _empty(tensor: Tensor) -> np.ndarray:
    stored = storage(tensor)
    return np.empty(stored.shape, STORAGE[stored.dtype])


def _placed(operands: Sequence[np.ndarray], folder: Path) -> Iterator[str]:
    """Assembly that takes the operands' bytes from files of ``folder``, which are made."""
    make_folder(folder)
    yield '    .section .rodata, "a"\n'
    for i, array in enumerate(operands):
        (folder / f"b{i}.bin").write_bytes(array.tobytes())
        yield f'    .balign 8\n    .global b{i}\nb{i}:\n    .incbin "b{i}.bin"\n'


def _main(
    operands: int,
    results: Sequence[np.ndarray],
    scratch: Sequence[np.ndarray],
    numbers: Sequence[int],
) -> str:
    """C that calls the kernel, and writes the count, the results and what is behind each buffer."""
    made = {f"b{operands + i}": _words(array) for i, array in enumerate((*results, *scratch))}
    buffers = [f"b{i}" for i in range(operands)] + list(made)
    types = ["void *"] * len(buffers) + ["int32_t"] * len(numbers)
    names = [f"p{i}" for i in range(len(types))]
    starts = [0] * len(results) + [array.nbytes for array in scratch]
    writes = [
        f"hal_write((char *){b} + {n}, sizeof {b} - {n});"
        for b, n in zip(made, starts, strict=True)
    ]
    return MAIN.format(
        byte=BYTE,
        buffers="".join(
            [*(f"extern unsigned char b{i}[];\n" for i in range(operands))]
            + [f"static uint64_t {name}[{words}];\n" for name, words in made.items()]
        ),
        types=", ".join(f"{type} {name}" for type, name in zip(types, names, strict=True)),
        unused=" ".join(f"(void){name};" for name in names),
        arguments=", ".join([*buffers, *map(str, numbers)]),
        fills="".join(f"    fill({name}, sizeof {name});\n" for name in made),
        writes="".join(f"    {line}\n" for line in writes),
    )


def _words(array: np.ndarray) -> int:
    """Of 8 bytes: the array's own and one that shows whether a kernel writes behind it."""
    return ceil(array.nbytes / 8) + 1


def _read(
    data: bytes, kernel: Kernel, results: Sequence[np.ndarray], scratch: Sequence[np.ndarray]
) -> int:
    """The instructions that ``data`` tells of; ``results`` become those that it holds."""
    behind = [8 * _words(array) - array.nbytes for array in (*results, *scratch)]
    wanted = 8 + sum(array.nbytes for array in results) + sum(behind)
    if len(data) != wanted:
        raise ProgramFailed(
            f"the program that calls {kernel.name} wrote {len(data)} bytes, not {wanted}",
            help="the kernel may have written beyond its buffers",
        )
    at = 8
    for i, guard in enumerate(behind):
        if i < len(results):
            array = results[i]
            array[...] = np.frombuffer(data, array.dtype, array.size, at).reshape(array.shape)
            at += array.nbytes
        if data[at : at + guard] != bytes([BYTE]) * guard:
            what = f"result {i}" if i < len(results) else f"scratch {i - len(results)}"
            raise ProgramFailed(f"{kernel.name} wrote behind its {what}")
        at += guard
    return int.from_bytes(data[:8], "little")
