"""A compiled model at a place of the caller's choice, with what it costs there."""

from __future__ import annotations

from collections.abc import Callable as Function
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .calling import Callable, Runner
from .compiler.codes import encode
from .compiler.errors import Incompatible, unknown_name
from .compiler.ir import Type
from .compiler.run.hosted import Hosted, Place
from .compiler.run.machine import machine_names
from .compiler.run.qemu import Emulated
from .compiler.run.remote import PREFIX, remote
from .compiler.run.user_mode import EMULATORS, UserMode
from .program import Program

if TYPE_CHECKING:
    from .compiler.run.gpu import GpuModel

PLACES = ("native", "qemu", "interpreter", "ssh:HOST")
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
    def hosted(self) -> Hosted | None:
        """The program on a system of its own, if it is one."""
        return self.place if isinstance(self.place, Hosted) else None

    @property
    def on_gpu(self) -> GpuModel | None:
        """The program on a GPU, or interpreted in place of one."""
        return cast("GpuModel", self.place) if self.program.is_for_gpu else None

    def routing_each(
        self, samples: Sequence[tuple[np.ndarray, ...]]
    ) -> list[tuple[np.ndarray, ...]] | None:
        """The experts that are chosen there for each of ``samples``; None where nobody sees."""
        if self.emulated:
            return None
        if self.on_gpu:
            return [self.on_gpu.routing(*inputs) for inputs in samples]
        if self.hosted is None:
            return [self.program.routing(*inputs) for inputs in samples]
        routed = self.manifest["routing"]
        peeks = [(p["at"], Type(p["dtype"], tuple(p["shape"]))) for p in routed if "at" in p]
        codes = [
            tuple(encode(np.asarray(x), t) for x, t in zip(inputs, self.inputs, strict=True))
            for inputs in samples
        ]
        found = []
        for outputs, looks in self.hosted.observed(codes, peeks):
            seen = iter(looks)
            found.append(
                tuple(
                    outputs[p["output"]].reshape(p["shape"]) if "output" in p else next(seen)
                    for p in routed
                )
            )
        return found

    @property
    def instructions(self) -> tuple[int, ...]:
        """Instructions of each run of the compiled batch so far; none where nobody counts them."""
        return self.emulated.instructions if self.emulated else ()

    @property
    def stack_bytes(self) -> int | None:
        """The most bytes of stack so far, main's few among them; None where nobody looks."""
        return self.emulated.stack_bytes if self.emulated else None


def check_place(place: str) -> None:
    """Raises UnknownName, listing the places, or UsageError, if ``place`` is none."""
    if place.startswith(PREFIX):
        remote(place)
    elif place not in PLACES:
        raise unknown_name("place to run on", place, PLACES)


def placed(program: Program, place: str, progress: Progress) -> Placed:
    """``program`` at ``place``; see `Program.on`."""
    check_place(place)
    if place == "native":
        return Placed(program, program.runner)
    if place == "interpreter":
        progress("unpacking weights")
        return Placed(program, program.model_on_gpu(interpret=True))
    if place == "qemu" and not is_library(program):
        return Placed(program, emulated(program, progress))
    where = remote(place) if place.startswith(PREFIX) else user_mode(program)
    code = command_of(program, progress)
    return Placed(program, Hosted(code, program.inputs, program.outputs, where, progress))


def is_library(program: Program) -> bool:
    """Whether it was compiled for a system, and not as C for a bare machine."""
    return f"kernels/lib{program.name}.a" in program.artefact.sections


def user_mode(program: Program) -> Place:
    """The emulator that the program's core names as its ``runner``."""
    core = program.manifest["core"]
    if core["runner"] not in EMULATORS:
        raise Incompatible(
            f"{program.name} was compiled for {program.target}, as a library for a system, "
            "which QEMU does not emulate here",
            help="leave --on out, or compile for an ARM (--target aarch64) or a microcontroller "
            "(--target rv32imc)",
        )
    return UserMode(core["runner"], core.get("emulator_cpu"))


def command_of(program: Program, progress: Progress) -> bytes:
    """Its program ``NAME-run``: the one that it holds, else linked now.

    Raises Incompatible for what is no library, ToolMissing without a C compiler.
    """
    if not is_library(program):
        raise Incompatible(
            f"{program.name} was compiled for {program.target}, as C for a machine of its own",
            help="--on qemu emulates it, as Program.on does; a machine that ssh reaches takes "
            "--target aarch64, for one",
        )
    (made,) = programs_of(program, progress).values()
    return made


def programs_of(program: Program, progress: Progress) -> dict[str, bytes]:
    """The programs on files of arrays that go with a library, by name; empty for others."""
    from .targets.registry import core_from, family_of

    sections, name = program.artefact.sections, f"{program.name}-run"
    if not is_library(program):
        return {}
    if f"kernels/{name}" in sections:
        return {name: sections[f"kernels/{name}"]}
    core = core_from(program.manifest["core"])
    files = {
        section.partition("/")[2]: content
        for section, content in sections.items()
        if section.startswith("kernels/")
    }
    made: dict[str, bytes] = family_of(core).programs(core, program.manifest, files, progress)
    return made


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
            f"{program.name} was compiled for {program.target}, as a library for a system: "
            "its instructions are not counted",
            help="compile for a microcontroller, such as --target rv32imc",
        )
    if machine not in machine_names():
        raise Incompatible(
            f"{program.name} was compiled for {program.target}, whose `runner` is {machine!r}: "
            "no machine that is emulated here",
            help=f"compile for a target that runs on one of {', '.join(machine_names())}",
        )
    return Emulated(machine, files, program.name, program.inputs, program.outputs, progress)
