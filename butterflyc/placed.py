"""A compiled model at a place of the caller's choice, with what it costs there."""

from __future__ import annotations

from collections.abc import Callable as Function
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .calling import Callable, Runner
from .compiler.errors import Incompatible, unknown_name
from .compiler.run.machine import machine_names
from .compiler.run.qemu import Emulated
from .program import Program

PLACES = ("native", "qemu")
Progress = Function[[str], None]


@dataclass(frozen=True, eq=False)
class Placed(Callable):
    """``program`` with another runner: called as the program is, same results."""

    program: Program
    place: Runner

    @property
    def manifest(self) -> Mapping[str, Any]:
        return self.program.manifest

    @property
    def runner(self) -> Runner:
        return self.place

    @property
    def emulated(self) -> Emulated | None:
        """The emulated machine, if it is one."""
        return self.place if isinstance(self.place, Emulated) else None

    @property
    def instructions(self) -> tuple[int, ...]:
        """Instructions of each run of the compiled batch so far; none where nobody counts them."""
        return self.emulated.instructions if self.emulated else ()

    @property
    def stack_bytes(self) -> int | None:
        """The most bytes of stack so far, main's few among them; None where nobody looks."""
        return self.emulated.stack_bytes if self.emulated else None


def check_place(place: str) -> None:
    """Raises UnknownName, listing the places, if ``place`` is none."""
    if place not in PLACES:
        raise unknown_name("place to run on", place, PLACES)


def placed(program: Program, place: str, progress: Progress) -> Placed:
    """``program`` at ``place``; see `Program.on`."""
    check_place(place)
    return Placed(program, program.native if place == "native" else emulated(program, progress))


def c_files(program: Program) -> dict[str, str]:
    """The C files that run a program, by name; empty if it was compiled to a library."""
    name, sections, folder = program.name, program.artefact.sections, "kernels/src/"
    parts = [name, f"{name}_kernels", f"{name}_weights"]
    files = [f"{part}.{kind}" for part in parts for kind in "hc"]
    return {file: sections[folder + file].decode() for file in files if folder + file in sections}


def emulated(program: Program, progress: Progress) -> Emulated:
    """``program`` on the machine that its core names as its ``runner``."""
    machine = program.manifest["core"]["runner"]
    files = c_files(program)
    if not files:
        raise Incompatible(
            f"{program.name} was compiled for {program.target}, as a library for a system, "
            "and QEMU emulates bare machines here",
            help="leave --on out, or compile for a microcontroller, such as --target rv32imc",
        )
    if machine not in machine_names():
        raise Incompatible(
            f"{program.name} was compiled for {program.target}, whose `runner` is {machine!r}: "
            "no machine that is emulated here",
            help=f"compile for a target that runs on one of {', '.join(machine_names())}",
        )
    return Emulated(machine, files, program.name, program.inputs, program.outputs, progress)
