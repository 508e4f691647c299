"""Objects, the driver and the weights to libraries, and to a program, with a C compiler."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import ButterflycError
from .cross import OWN, Compiler, compiler_for, this_architecture
from .elf import defined_symbols
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

    Nothing but the C interface, which ``NAME.h`` declares, is exported by the shared one.
    """
    name = model.name
    sources = {
        f"{name}.c": model.source.encode(),
        f"{name}_weights.S": _WEIGHTS.format(name=name, alignment=ALIGNMENT).encode(),
    }
    if model.pool:
        sources[f"{name}_pool.c"] = model.pool.encode()
    made = {source: f"{Path(source).stem}.o" for source in sources}
    objects = [*made.values(), f"{name}_kernels.o"]
    files = {
        **sources,
        f"{name}.h": model.header.encode(),
        "weights.bin": model.weights,
        objects[-1]: kernels,
    }
    # No path, no identity of the build; and nothing of a compiler's own library that is not used.
    options = ["--version-script=exports", "--no-undefined", "--build-id=none"]
    linker = [f"-Wl,{option}" for option in (*options, "--strip-debug", "--gc-sections")]
    linker += ["-pthread"] if model.pool else []
    with TemporaryDirectory() as folder:
        _write(folder, files)
        for source, object in made.items():
            run([*compiler.shared, *FLAGS, "-fPIC", "-c", source, "-o", object], folder)
        parts = {name: (Path(folder) / name).read_bytes() for name in objects}
        # A name that is not there is an error to lld.
        there = {symbol for content in parts.values() for symbol in defined_symbols(content)}
        exported = [symbol for symbol in model.exported if symbol in there]
        script = f"{{ global: {'; '.join(exported)}; local: *; }};"
        (Path(folder) / "exports").write_text(script)
        run([*compiler.shared, "-shared", *objects, *linker, "-o", "library.so"], folder)
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
    end = [*libraries, "-pthread", "-Wl,--build-id=none", "-s", "-o", "program"]
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
