"""Cycles on an ARM core that is not here: counted in QEMU, on LLVM's model of the core.

Cores that LLVM has no model of are measured in instructions alone. Caches are in neither.
"""

from __future__ import annotations

from typing import Any

from ..bench.cortex_a_cores import CORES
from ..compiler.run.executions import emulator_version
from ..compiler.run.kernel_call import call_kernel
from ..compiler.run.llvm import llvm_version
from ..compiler.run.modelled import modelled
from ..compiler.run.user_mode import EMULATORS
from ..targets import cpu
from ..targets.registry import Core
from .measure import Asked, Reading, kernel_of, trying


class ArmMeter:
    """Cycles of one call where ``model`` is LLVM's name of the core; else instructions."""

    alone, limit = False, 600.0

    def __init__(self, core: Core, model: str | None) -> None:
        self.target = core.name
        self.method = "cycles" if model else "instructions"
        self._machine, self._model = cpu.machine(core), model
        self._emulated = core.emulator_cpu or "max"
        self._architecture = core.runner.removeprefix("qemu-")

    def features(self) -> tuple[str, ...]:
        return ()

    def instrument(self) -> str:
        counted = f"{self._architecture} in QEMU {emulator_version(self._architecture)}"
        return f"{counted}, llvm-mca {llvm_version()} for {self._model}" if self._model else counted

    def read(self, asked: Asked) -> Reading:
        tried = trying(asked.spec)
        spec = asked.spec.with_parameters(asked.way.parameters)
        target: dict[str, Any] = self._machine.target
        lanes, kernel = self._machine.lanes, kernel_of(asked.way)
        call = call_kernel(kernel, spec, tried.arrays, lanes, target, self._emulated)
        tried.check(call.results)
        if self._model:
            return Reading(modelled(call, self._model).cycles)
        return Reading(call.executions.total)


def meter(core: Core) -> ArmMeter | None:
    """For ARM cores that QEMU emulates."""
    if core.family != "cpu" or core.runner not in EMULATORS:
        return None
    models = {known.target: known.model for known in CORES.values()}
    return ArmMeter(core, models.get(core.name))
