"""Kernels for ARM in QEMU's user mode: a program an object, buffers in and out by pipe."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from ..conftest import STRICT_TOOLS

# What a call of a kernel looks like: which of the program's it is, how large its buffers are.
MAIN = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
{declared}
int main(void) {{
    void *buffers[{most} + 1];
    uint32_t sizes[{most} + 1], head[3];
    int32_t numbers[{most} + 1];
    if (fread(head, 4, 3, stdin) != 3) return 2;
    if (fread(sizes, 4, head[1], stdin) != head[1]) return 2;
    if (fread(numbers, 4, head[2], stdin) != head[2]) return 2;
    for (uint32_t i = 0; i < head[1]; i++) {{
        if (posix_memalign(&buffers[i], 64, sizes[i] + 64)) return 3;
        if (fread(buffers[i], 1, sizes[i], stdin) != sizes[i]) return 2;
    }}
    switch (head[0]) {{
{calls}
    default: return 5;
    }}
    for (uint32_t i = 0; i < head[1]; i++)
        if (fwrite(buffers[i], 1, sizes[i], stdout) != sizes[i]) return 4;
    return 0;
}}
"""
# By symbol: how many buffers a kernel takes, and how many numbers behind them.
Taken = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Emulator:
    """How programs for one kind of ARM are made and run here."""

    compiler: str
    run: tuple[str, ...]


EMULATORS = {
    "neon": Emulator("aarch64-linux-gnu-gcc", ("qemu-aarch64", "-cpu", "cortex-a53")),
    "neon-in-order": Emulator("aarch64-linux-gnu-gcc", ("qemu-aarch64", "-cpu", "cortex-a53")),
    "neon-dotprod": Emulator("aarch64-linux-gnu-gcc", ("qemu-aarch64", "-cpu", "cortex-a76")),
    "neon-dotprod-in-order": Emulator(
        "aarch64-linux-gnu-gcc", ("qemu-aarch64", "-cpu", "cortex-a76")
    ),
    "neon-v7": Emulator("arm-linux-gnueabihf-gcc", ("qemu-arm", "-cpu", "cortex-a9")),
}

_folder = TemporaryDirectory()
_numbers = count()


class Emulated:
    """The kernels of an object as one program, which is called with the bytes of buffers."""

    def __init__(self, lanes: str, content: bytes, kernels: Taken) -> None:
        self._emulator = EMULATORS[lanes]
        for tool in (self._emulator.compiler, self._emulator.run[0]):
            _need(tool)
        self._places = {symbol: i for i, symbol in enumerate(kernels)}
        base = Path(_folder.name) / f"kernels_{next(_numbers)}"
        base.with_suffix(".o").write_bytes(content)
        base.with_suffix(".c").write_text(_main(kernels))
        self._program = str(base)
        command = [self._emulator.compiler, "-static", "-w", f"{base}.c", f"{base}.o"]
        subprocess.run([*command, "-o", self._program], check=True)

    def call(
        self, symbol: str, memory: Sequence[np.ndarray[Any, Any]], numbers: Sequence[int]
    ) -> None:
        """A call of a kernel, which changes ``memory``."""
        sizes = [m.nbytes for m in memory]
        head = [self._places[symbol], len(sizes), len(numbers), *sizes, *numbers]
        done = subprocess.run(
            [*self._emulator.run, self._program],
            input=np.array(head, np.int64).astype(np.int32).tobytes()
            + b"".join(m.tobytes() for m in memory),
            capture_output=True,
            check=False,
        )
        if done.returncode != 0 or len(done.stdout) != sum(sizes):
            raise AssertionError(f"{symbol} ended with {done.returncode}: {done.stderr!r}")
        left = np.frombuffer(done.stdout, np.uint8)
        for array, size in zip(memory, sizes, strict=True):
            array.reshape(-1).view(np.uint8)[:] = left[:size]
            left = left[size:]


def _need(tool: str) -> None:
    if shutil.which(tool):
        return
    reason = f"{tool} not found; `make toolchains` may install it"
    if STRICT_TOOLS:
        pytest.fail(f"{reason} (BUTTERFLYC_STRICT_TOOLS is set)")
    pytest.skip(reason)


def _main(kernels: Taken) -> str:
    """What calls one of ``kernels``, as C."""
    declared, calls = [], []
    for i, (symbol, (buffers, numbers)) in enumerate(kernels.items()):
        types = ["void *"] * buffers + ["int32_t"] * numbers
        given = [f"buffers[{j}]" for j in range(buffers)]
        given += [f"numbers[{j}]" for j in range(numbers)]
        declared.append(f"void {symbol}({', '.join(types)});")
        calls.append(f"    case {i}: {symbol}({', '.join(given)}); break;")
    most = max((max(taken) for taken in kernels.values()), default=0)
    return MAIN.format(declared="\n".join(declared), calls="\n".join(calls), most=most)
