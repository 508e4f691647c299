"""Objects, the driver and the weights to one shared library, with the system's C compiler."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import ButterflycError, ToolMissing
from .model_c import ALIGNMENT, ModelSource

_WEIGHTS = """\
  .section .rodata
  .global {name}_weights
  .hidden {name}_weights
  .balign {alignment}
{name}_weights:
  .incbin "weights.bin"
  .section .note.GNU-stack,"",%progbits
"""


class LinkFailed(ButterflycError):
    """The C compiler refused what butterflyc wrote: a bug of ours."""

    code = "BF997"


def c_compiler(names: Sequence[str] = ("cc", "gcc", "clang")) -> list[str]:
    """The command of a C compiler: $CC, else the first of ``names`` there is.

    Raises ToolMissing if there is none.
    """
    chosen = os.environ.get("CC")
    candidates = [shlex.split(chosen)] if chosen else [[name] for name in names]
    for command in candidates:
        if shutil.which(command[0]):
            return command
    looked = " ".join(candidate[0] for candidate in candidates)
    raise ToolMissing(
        f"no C compiler found (looked for: {looked})",
        help="install one (Debian: apt-get install gcc), or set CC",
    )


def link_shared(model: ModelSource, objects: bytes, compiler: Sequence[str]) -> bytes:
    """The shared library ``libNAME.so``; nothing but ``NAME_*`` of the C interface is exported."""
    name = model.name
    exported = f"{{ global: {'; '.join(model.exported)}; local: *; }};"
    files = {
        f"{name}.c": model.source.encode(),
        f"{name}.h": model.header.encode(),
        "weights.bin": model.weights,
        "weights.S": _WEIGHTS.format(name=name, alignment=ALIGNMENT).encode(),
        "kernels.o": objects,
        "exports": exported.encode(),
    }
    if model.pool:
        files[f"{name}_pool.c"] = model.pool.encode()
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    link = ["-Wl,--version-script=exports", "-Wl,--build-id=none", "-Wl,--no-undefined"]
    with TemporaryDirectory() as folder:
        for path, content in files.items():
            (Path(folder) / path).write_bytes(content)
        sources = [f"{name}.c", "weights.S", "kernels.o"]
        sources += [f"{name}_pool.c", "-pthread"] if model.pool else []
        run([*compiler, *flags, *sources, *link, "-o", "library.so"], folder)
        return (Path(folder) / "library.so").read_bytes()


def run(command: Sequence[str], folder: str) -> None:
    """Runs a tool in ``folder``. Raises LinkFailed with what it printed if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LinkFailed(
            f"{command[0]} failed with status {done.returncode}:\n{done.stderr.strip()[-2000:]}",
            help="please report this with the command: " + shlex.join(command),
        )
