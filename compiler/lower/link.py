"""Objects, the driver and the weights to libraries, and to a program, with a C compiler."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import ButterflycError
from .cross import OWN, Compiler, compiler_for, this_architecture
from .elf import undefined_symbols
from .model_c import ALIGNMENT, ModelSource
from .static_library import static_library

_WEIGHTS = """\
  .section .rodata
  .global {name}_weights
  .hidden {name}_weights
  .balign {alignment}
{name}_weights:
  .incbin "weights.bin"
  .section .note.GNU-stack,"",%progbits
"""
# LLVM calls these on an ARM that does not divide, where the ABI's own name is __aeabi_idiv: not
# every C compiler's library has both.
_DIVISION = """\
__attribute__((visibility("hidden"))) int __divsi3(int a, int b);
__attribute__((visibility("hidden"))) unsigned __udivsi3(unsigned a, unsigned b);
int __divsi3(int a, int b) { return a / b; }
unsigned __udivsi3(unsigned a, unsigned b) { return a / b; }
"""
FLAGS = ("-std=c99", "-O2", "-g0", "-Wall", "-Wextra", "-Werror")


class LinkFailed(ButterflycError):
    """The C compiler refused what butterflyc wrote: a bug of ours."""

    code = "BF997"


def c_compiler(names: Sequence[str] = OWN) -> list[str]:
    """The command of a C compiler for this machine: $CC, else the first of ``names`` there is.

    Raises ToolMissing if there is none.
    """
    return list(compiler_for(this_architecture(), names).shared)


def link_libraries(model: ModelSource, kernels: bytes, compiler: Compiler) -> tuple[bytes, bytes]:
    """``libNAME.so`` and ``libNAME.a``.

    Nothing but ``NAME_*`` of the C interface is exported by the shared one.
    """
    name = model.name
    exported = f"{{ global: {name}_run; {name}_predict; local: *; }};"
    sources = {
        f"{name}.c": model.source.encode(),
        f"{name}_weights.S": _WEIGHTS.format(name=name, alignment=ALIGNMENT).encode(),
    }
    if {"__divsi3", "__udivsi3"} & undefined_symbols(kernels):
        sources[f"{name}_division.c"] = _DIVISION.encode()
    made = {source: f"{source.partition('.')[0]}.o" for source in sources}
    objects = [*made.values(), f"{name}_kernels.o"]
    files = {
        **sources,
        f"{name}.h": model.header.encode(),
        "weights.bin": model.weights,
        objects[-1]: kernels,
        "exports": exported.encode(),
    }
    # No path, no identity of the build; and nothing of a compiler's own library that is not used.
    options = ["--version-script=exports", "--no-undefined", "--build-id=none"]
    linker = [f"-Wl,{option}" for option in (*options, "--strip-debug", "--gc-sections")]
    with TemporaryDirectory() as folder:
        _write(folder, files)
        for source, object in made.items():
            run([*compiler.shared, *FLAGS, "-fPIC", "-c", source, "-o", object], folder)
        run([*compiler.shared, "-shared", *objects, *linker, "-o", "library.so"], folder)
        parts = {name: (Path(folder) / name).read_bytes() for name in objects}
        return (Path(folder) / "library.so").read_bytes(), static_library(parts)


def link_program(
    sources: Mapping[str, bytes],
    libraries: Sequence[str],
    compiler: Compiler,
    progress: Callable[[str], None] = lambda _: None,
) -> bytes:
    """The program made of ``sources`` by their names: C files, their headers, and ``libraries``.

    It needs no library of the system, unless the C library here cannot be linked statically.
    """
    names = [name for name in sources if name.endswith(".c")]
    end = [*libraries, "-Wl,--build-id=none", "-s", "-o", "program"]
    with TemporaryDirectory() as folder:
        _write(folder, sources)
        try:
            run([*compiler.static, *FLAGS, *names, *end], folder)
        except LinkFailed:
            if compiler.hermetic:
                raise
            progress("linking once more, against the system's shared C library")
            run([*compiler.shared, *FLAGS, *names, *end], folder)
        return (Path(folder) / "program").read_bytes()


def _write(folder: str, files: Mapping[str, bytes]) -> None:
    for path, content in files.items():
        (Path(folder) / path).write_bytes(content)


def run(command: Sequence[str], folder: str) -> None:
    """Runs a tool in ``folder``. Raises LinkFailed with what it printed if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LinkFailed(
            f"{command[0]} failed with status {done.returncode}:\n{done.stderr.strip()[-2000:]}",
            help="please report this with the command: " + shlex.join(command),
        )
