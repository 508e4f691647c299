"""Calls of kernels for ARM, in QEMU's user mode: a program a kernel, buffers in and out by pipe."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from ..conftest import STRICT_TOOLS

MAIN = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
void kernel({types});
int main(void) {{
    void *buffers[{buffers} + 1];
    uint32_t sizes[{buffers} + 1];
    int32_t numbers[{numbers} + 1];
    if (fread(sizes, 4, {buffers}, stdin) != {buffers}) return 2;
    if (fread(numbers, 4, {numbers}, stdin) != {numbers}) return 2;
    for (int i = 0; i < {buffers}; i++) {{
        if (posix_memalign(&buffers[i], 64, sizes[i] + 64)) return 3;
        if (fread(buffers[i], 1, sizes[i], stdin) != sizes[i]) return 2;
    }}
    kernel({arguments});
    for (int i = 0; i < {buffers}; i++)
        if (fwrite(buffers[i], 1, sizes[i], stdout) != sizes[i]) return 4;
    return 0;
}}
"""


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
    """A kernel's object as a program: called with the bytes of its buffers, which it changes."""

    def __init__(self, lanes: str, content: bytes, symbol: str, buffers: int, numbers: int) -> None:
        self._emulator = EMULATORS[lanes]
        for tool in (self._emulator.compiler, self._emulator.run[0]):
            _need(tool)
        base = Path(_folder.name) / f"{symbol}_{next(_numbers)}"
        base.with_suffix(".o").write_bytes(content)
        main = _main(self._emulator.compiler, buffers, numbers)
        self._program = str(base)
        command = [self._emulator.compiler, "-static", f"-Wl,--defsym=kernel={symbol}"]
        subprocess.run([*command, main, f"{base}.o", "-o", self._program], check=True)

    def __call__(self, memory: Sequence[np.ndarray[Any, Any]], numbers: Sequence[int]) -> None:
        sizes = [m.nbytes for m in memory]
        head = np.array([*sizes, *numbers], np.int64).astype(np.int32).tobytes()
        done = subprocess.run(
            [*self._emulator.run, self._program],
            input=head + b"".join(m.tobytes() for m in memory),
            capture_output=True,
            check=False,
        )
        if done.returncode != 0 or len(done.stdout) != sum(sizes):
            raise AssertionError(f"the kernel ended with {done.returncode}: {done.stderr!r}")
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


@cache
def _main(compiler: str, buffers: int, numbers: int) -> str:
    """The object that calls a kernel of so many buffers and numbers."""
    base = Path(_folder.name) / f"main_{compiler}_{buffers}_{numbers}"
    pointers = [f"buffers[{i}]" for i in range(buffers)]
    text = MAIN.format(
        types=", ".join(["void *"] * buffers + ["int32_t"] * numbers),
        buffers=buffers,
        numbers=numbers,
        arguments=", ".join(pointers + [f"numbers[{i}]" for i in range(numbers)]),
    )
    base.with_suffix(".c").write_text(text)
    subprocess.run([compiler, "-O1", "-c", f"{base}.c", "-o", f"{base}.o"], check=True)
    return f"{base}.o"
