"""Assembly for ARM in tests: to objects, and to programs without a C library."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from butterflyc.compiler.run.llvm import llvm_tool
from butterflyc.compiler.run.machine_code import Block, Function, Instruction, disassemble

# Ends a program with status 0.
EXIT = {
    "aarch64": "mov x8, #93\n mov x0, #0\n svc #0\n",
    "arm": "mov r7, #1\n mov r0, #0\n svc #0\n",
}
COMPILERS = {"aarch64": "aarch64-linux-gnu-gcc", "arm": "arm-linux-gnueabihf-gcc"}


def function(name: str, text: str) -> str:
    """The assembly ``text`` as a function, with its type and size."""
    head = f"  .global {name}\n  .type {name}, %function\n{name}:\n"
    return f"{head}{text}\n  .size {name}, . - {name}\n"


def assembled(folder: Path, text: str, name: str = "code") -> Function:
    """The function of that name whose assembly for aarch64 is ``text``."""
    source, target = folder / f"{name}.s", folder / f"{name}.o"
    source.write_text(function(name, text))
    options = ["-triple=aarch64-linux-gnu", "-mattr=+all", "-filetype=obj"]
    subprocess.run([llvm_tool("llvm-mc"), *options, source, "-o", target], check=True)
    return disassemble(target, name)


def program(
    folder: Path, architecture: str, functions: dict[str, str], flags: Sequence[str] = ()
) -> Path:
    """A static program made of these functions, of which ``_start`` is the first to run."""
    text = [function(name, code) for name, code in functions.items()]
    (folder / "program.s").write_text("".join(["  .text\n", *text]))
    options = [*flags, "-nostdlib", "-static", "program.s", "-o", "program"]
    subprocess.run([COMPILERS[architecture], *options], cwd=folder, check=True)
    return folder / "program"


def block(*lines: str) -> Block:
    """Instructions as one block, which repeats itself."""
    code = tuple(Instruction(4 * i, line) for i, line in enumerate(lines))
    return Block(code, (0,))
