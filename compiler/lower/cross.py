"""Which C compiler makes libraries and programs for a triple, on this machine or another one.

``CC_<TRIPLE>`` (``CC_AARCH64_LINUX_GNU``) goes before all; ``CC`` is for the machine's own
architecture, as are ``cc``, ``gcc`` and ``clang``. ``zig`` is the compiler of the package ziglang,
which has the C libraries of all systems in it, so that what it makes does not depend on the machine
that it runs on.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import attrs

from ..errors import Damaged, ToolMissing
from .elf import architecture_of

# Compilers that make code for the machine they run on.
OWN = ("cc", "gcc", "clang")
# What a library asks of the system's C library at most: that of 2012, and aarch64's first.
GLIBC = "2.17"
INSTALLED_BY = {
    "zig": "pip install 'butterflyc[cross]'",
    "aarch64-linux-gnu-gcc": "apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "arm-linux-gnueabihf-gcc": "apt-get install gcc-arm-linux-gnueabihf libc6-dev-armhf-cross",
}


@attrs.frozen
class Compiler:
    """A C compiler's commands: for shared libraries, and for programs that are linked statically.

    One that is ``hermetic`` makes the same on every machine. ``notice`` is for people to read.
    """

    shared: tuple[str, ...]
    static: tuple[str, ...]
    hermetic: bool = False
    notice: str = ""


@cache
def this_architecture() -> str:
    """What this process runs as; ``arm`` also where the system around it has 64 bits."""
    try:
        with Path("/proc/self/exe").open("rb") as file:
            return architecture_of(file.read(20))
    except (OSError, Damaged):
        return platform.machine()


def architecture(triple: str) -> str:
    """The same of an LLVM triple: ``armv7a-linux-gnueabihf`` is for ``arm``."""
    first = triple.partition("-")[0]
    return "arm" if first.startswith(("arm", "thumb")) else first


def compiler_for(triple: str, names: Sequence[str] = OWN) -> Compiler:
    """The first C compiler there is that makes code for ``triple``.

    Raises ToolMissing with what to install.
    """
    own = architecture(triple) == this_architecture()
    variable = f"CC_{triple.upper().replace('-', '_')}"
    chosen = os.environ.get(variable) or (os.environ.get("CC") if own else None)
    if chosen:
        command = shlex.split(chosen)
        return _plain(command) if shutil.which(command[0]) else _missing(command, triple, variable)
    usable = [name for name in names if own or name not in OWN]
    for name in usable:
        if name == "zig" and find_spec("ziglang"):
            return _zig(triple)
        if name != "zig" and shutil.which(name):
            return _plain([name])
    return _missing(usable or names, triple, variable)


def _plain(command: Sequence[str]) -> Compiler:
    return Compiler(tuple(command), (*command, "-static"))


def _zig(triple: str) -> Compiler:
    environment = triple.rpartition("-")[2]
    start = f"{architecture(triple)}-linux-"
    command = sys.executable, "-m", "ziglang", "cc", "-target"
    return Compiler(
        (*command, f"{start}{environment}.{GLIBC}"),
        (*command, f"{start}{environment.replace('gnu', 'musl')}", "-static"),
        hermetic=True,
        notice="with zig, whose first time for a target takes a minute",
    )


def _missing(looked: Sequence[str], triple: str, variable: str) -> Compiler:
    own = architecture(triple) == this_architecture()
    ways = [INSTALLED_BY[name] for name in looked if name in INSTALLED_BY]
    ways += ["apt-get install gcc"] if own and not ways else []
    raise ToolMissing(
        f"no C compiler for {triple} found (looked for: {' '.join(looked)})",
        help=f"{', or '.join([*ways, ''])}set {'CC' if own else variable} to one",
    )
