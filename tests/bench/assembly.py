"""Assembly for ARM in tests: to objects, and to programs without a C library."""

from __future__ import annotations

import subprocess
from pathlib import Path

from butterflyc.compiler.run.llvm import llvm_tool
from butterflyc.compiler.run.machine_code import Block, Function, Instruction, disassemble

# Ends a program with status 0.
EXIT = {
    "aarch64": "mov x8, #93\n mov x0, #0\n svc #0\n",
    "arm": "mov r7, #1\n mov r0, #0\n svc #0\n",
}
COMPILERS = {"aarch64": "aarch64-linux-gnu-gcc", "arm": "arm-linux-gnueabihf-gcc"}


def assembled(folder: Path, text: str, name: str = "code") -> Function:
    """The function of that name whose assembly for aarch64 is ``text``."""
    source, target = folder / f"{name}.s", folder / f"{name}.o"
    source.write_text(
        f"  .global {name}\n  .type {name}, %function\n{name}:\n{text}\n  .size {name}, . - {name}\n"
    )
    options = ["-triple=aarch64-linux-gnu", "-mattr=+all", "-filetype=obj"]
    subprocess.run([llvm_tool("llvm-mc"), *options, source, "-o", target], check=True)
    return disassemble(target, name)


def program(folder: Path, architecture: str, functions: dict[str, str], flags=()) -> Path:
    """A static program made of these functions, of which ``_start`` is the first to run."""
    text = ["  .text"]
    for name, code in functions.items():
        text += [f"  .global {name}", f"  .type {name}, %function", f"{name}:", code]
        text += [f"  .size {name}, . - {name}"]
    (folder / "program.s").write_text("\n".join(text) + "\n")
    command = [COMPILERS[architecture], *flags, "-nostdlib", "-static", "program.s", "-o", "program"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "program"


def block(*lines: str) -> Block:
    """Instructions as one block, which repeats itself."""
    code = tuple(Instruction(4 * i, line) for i, line in enumerate(lines))
    return Block(code, (0,))
