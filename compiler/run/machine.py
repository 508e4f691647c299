"""The machines that QEMU emulates without an operating system: one folder of ``machines/`` each."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import attrs

from ..errors import unknown_name

MACHINES = Path(__file__).parent / "machines"


@attrs.frozen
class Step:
    """One command from a source to an object: it reads one kind of file and makes another."""

    reads: str
    makes: str
    command: tuple[str, ...]


@attrs.frozen
class Missing:
    """A tool (or a file of one) that is not there, and the Debian package that has it."""

    tool: str
    package: str


@attrs.frozen
class Machine:
    """How programs for a machine are made and run: what its ``machine.toml`` says.

    Commands hold the names ``{machines}``, ``{source}``, ``{result}``, ``{optimise}`` and
    ``{elf}``; ``{flags}`` and ``{objects}`` stand for several words. ``specs`` are files that the
    C compiler must find, ``causes`` are the names of exceptions. A program may have ``code_bytes``
    of code and constants and ``data_bytes`` of variables; some of both is the machine's own.
    """

    name: str
    description: str
    elf_machine: int
    code_bytes: int
    data_bytes: int
    sources: tuple[str, ...]
    steps: tuple[Step, ...]
    link: tuple[str, ...]
    emulator: tuple[str, ...]
    nm: str
    size: str
    packages: dict[str, str]
    causes: dict[int, str]
    specs: dict[str, str] = attrs.field(factory=dict)

    def step(self, suffix: str) -> Step:
        """The step that reads files of this suffix; ``StopIteration`` if there is none."""
        return next(step for step in self.steps if step.reads == suffix)

    def missing(self) -> list[Missing]:
        """What this machine needs and the system lacks; empty if all is there."""
        tools = self.packages.items()
        gone = [Missing(tool, package) for tool, package in tools if not shutil.which(tool)]
        compiler = self.step(".c").command[0]
        if shutil.which(compiler):
            for file, package in self.specs.items():
                if not _finds(compiler, file):
                    gone.append(Missing(file, package))
        else:
            gone += [Missing(file, package) for file, package in self.specs.items()]
        return gone


def machine_names() -> tuple[str, ...]:
    """The names of all machines, sorted."""
    return tuple(sorted(path.parent.name for path in MACHINES.glob("*/machine.toml")))


@cache
def load_machine(name: str) -> Machine:
    """The machine of that name. Raises UnknownName with the nearest names."""
    if name not in machine_names():
        raise unknown_name("machine", name, machine_names())
    data = tomllib.loads((MACHINES / name / "machine.toml").read_text(encoding="utf-8"))
    data["causes"] = {int(number): text for number, text in data["causes"].items()}
    data["steps"] = tuple(Step(**step) for step in data["steps"])
    return Machine(name=name, **data)


def _finds(compiler: str, file: str) -> bool:
    """Whether a gcc finds a file of its own: else it prints the name that it was given."""
    asked = [compiler, f"-print-file-name={file}"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.strip() not in ("", file)
