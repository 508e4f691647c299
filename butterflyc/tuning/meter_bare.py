"""Instructions on a microcontroller that QEMU emulates: exact, and the same each time."""

from __future__ import annotations

from ..compiler.run.bare_call import call_on_machine
from ..compiler.run.bare_metal import compiler_version
from ..compiler.run.machine import machine_names
from ..targets import mcu
from ..targets.registry import Core
from .measure import Asked, Reading, kernel_of, trying


class BareMeter:
    """Instructions of one call. Boards whose processor is the same share what was measured."""

    method, alone, limit = "instructions", False, 120.0

    def __init__(self, core: Core) -> None:
        self.target = core.runner
        self._lanes = mcu.machine(core).lanes
        self._features = tuple(sorted(core.features))

    def features(self) -> tuple[str, ...]:
        return self._features

    def instrument(self) -> str:
        return compiler_version(self.target)

    def read(self, asked: Asked) -> Reading:
        tried = trying(asked.spec)
        spec = asked.spec.with_parameters(asked.way.parameters)
        call = call_on_machine(
            self.target, kernel_of(asked.way), spec, tried.arrays, self._lanes, self.limit
        )
        tried.check(call.results)
        return Reading(call.instructions)


def meter(core: Core) -> BareMeter | None:
    """For microcontrollers that are emulated here."""
    emulated = core.family == "mcu" and core.runner in machine_names()
    return BareMeter(core) if emulated else None
