"""Linux programs in QEMU's user mode, and how often each instruction is executed.

The counts are exact: the same in every run and on every host. They come from a plugin of QEMU,
which the host's C compiler makes when it is first asked for.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from ..errors import ToolFailed, ToolMissing
from ..lower.link import c_compiler
from .llvm import llvm_tool
from .tools import limited, run_tool, version_of

PLUGIN = Path(__file__).with_name("count_instructions.c")
RUN_SECONDS = 300
MAX_OUTPUT_BYTES = 64 << 20


@attrs.frozen
class Architecture:
    """How programs for an instruction set are linked and run here."""

    emulator: str
    compiler: str
    packages: tuple[str, ...]
    # Zig's name of it, from the package `ziglang`, where the C compiler is not there.
    zig: str


ARCHITECTURES = {
    "aarch64": Architecture(
        "qemu-aarch64",
        "aarch64-linux-gnu-gcc",
        ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"),
        "aarch64-linux-musl",
    ),
    "arm": Architecture(
        "qemu-arm",
        "arm-linux-gnueabihf-gcc",
        ("gcc-arm-linux-gnueabihf", "libc6-dev-armhf-cross"),
        "arm-linux-musleabihf",
    ),
    "x86_64": Architecture(
        "qemu-x86_64",
        "x86_64-linux-gnu-gcc",
        ("gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"),
        "x86_64-linux-musl",
    ),
}


@attrs.frozen
class Executions:
    """What a run executed: by address, and the functions' spans (address, bytes) by name."""

    by_address: Mapping[int, int]
    functions: Mapping[str, tuple[int, int]]

    @property
    def total(self) -> int:
        return sum(self.by_address.values())

    def of(self, function: str) -> int:
        """Instructions executed in ``function``, without those that it calls."""
        first, size = self.functions[function]
        return sum(n for at, n in self.by_address.items() if first <= at < first + size)

    def less(self, other: Executions) -> Executions:
        """What this run executed more often than ``other``, of the same program."""
        counts = {at: n - other.by_address.get(at, 0) for at, n in self.by_address.items()}
        return attrs.evolve(self, by_address={at: n for at, n in counts.items() if n})

    def executed(self) -> list[str]:
        """The functions that were executed."""
        spans = self.functions.items()
        return [
            name
            for name, (first, size) in spans
            if any(first <= at < first + size for at in self.by_address)
        ]


def static_linker(architecture: str) -> list[str]:
    """The command of a C compiler that makes static Linux programs for ``architecture``.

    Raises ToolMissing with the names of its Debian packages.
    """
    known = ARCHITECTURES[architecture]
    if shutil.which(known.compiler):
        return [known.compiler, "-static"]
    if find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-target", known.zig, "-static"]
    raise ToolMissing(
        f"programs for {architecture} need {known.compiler}, which is not installed",
        help=f"apt-get install --no-install-recommends {' '.join(known.packages)}, "
        "or pip install ziglang",
    )


def count_executions(
    architecture: str, program: Path, arguments: Sequence[str] = (), cpu: str = "max"
) -> tuple[bytes, Executions]:
    """What the static ``program`` writes, and how often each of its instructions was executed.

    Raises ToolMissing, and ToolFailed if it was stripped or does not end with status 0.
    """
    emulator = _emulator(architecture)
    functions = _functions(program)
    if not functions:
        raise ToolFailed(
            f"{program.name} has no symbols of functions, by which executions are told apart",
            help="link it without -s, and do not strip it",
        )
    first = min(address for address, _ in functions.values())
    end = max(address + size for address, size in functions.values())
    with TemporaryDirectory() as folder:
        (Path(folder) / "plugin.so").write_bytes(_plugin())
        out = Path(folder) / "counts"
        options = f"{folder}/plugin.so,first={first},bytes={end - first},out={out}"
        command = [emulator, "-cpu", cpu, "-plugin", options, str(program), *arguments]
        ended = limited(command, RUN_SECONDS, MAX_OUTPUT_BYTES)
        if ended.why or ended.status != 0 or not out.exists():
            how = ended.why or f"ended with status {ended.status}"
            raise ToolFailed(
                f"{program.name} in {emulator} {how}",
                help="the emulator must be able to load plugins (QEMU 4.2 to 8.1 with version 1)",
            )
        lines = out.read_text().split()
    counts = dict(zip(map(int, lines[::2]), map(int, lines[1::2]), strict=True))
    return ended.data, Executions(counts, functions)


def emulator_version(architecture: str = "aarch64") -> str:
    """The version of QEMU. Raises ToolMissing."""
    return version_of(_emulator(architecture))


def _emulator(architecture: str) -> str:
    emulator = ARCHITECTURES[architecture].emulator
    if not shutil.which(emulator):
        raise ToolMissing(
            f"programs for {architecture} run in {emulator}, which is not installed",
            help="apt-get install --no-install-recommends qemu-user",
        )
    return emulator


def _functions(program: Path) -> dict[str, tuple[int, int]]:
    """Of each function of ``program``: its address and its size in bytes.

    Of several names for one address only the first is there, so that nothing counts twice.
    """
    text = run_tool([llvm_tool("llvm-nm"), "--print-size", program.name], program.parent)
    found: dict[int, tuple[str, int]] = {}
    for entry in map(str.split, text.splitlines()):
        if len(entry) == 4 and entry[2] in "tTwW":
            # The lowest bit of an address says that a function is of Thumb instructions.
            found.setdefault(int(entry[0], 16) & ~1, (entry[3], int(entry[1], 16)))
    return {name: (address, size) for address, (name, size) in found.items()}


@cache
def _plugin() -> bytes:
    with TemporaryDirectory() as folder:
        flags = ["-std=gnu99", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra"]
        run_tool([*c_compiler(), *flags, str(PLUGIN), "-o", "plugin.so"], Path(folder))
        return (Path(folder) / "plugin.so").read_bytes()
