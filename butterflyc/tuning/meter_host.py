"""Time on this machine: a way and the default one in turns, on one core, in one process."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..bench.timing import interleave, one_core
from ..compiler.run.kernel import Call, bind
from ..compiler.run.native import cpu_name
from ..kernels.record import Spec
from ..targets import cpu
from ..targets.registry import Core
from .measure import Asked, Reading, kernel_of, told, trying
from .search import Way

# Ways whose code is kept from one measurement to the next.
KEPT = 4


class HostMeter:
    """CPU seconds of one call. Each round's ratio to the default way counts, the median of them."""

    method, alone, limit = "time", True, 120.0

    def __init__(self, core: Core) -> None:
        self._machine = cpu.machine(core)
        self.target = core.name

    def features(self) -> tuple[str, ...]:
        return (cpu_name(),)

    def instrument(self) -> str:
        return ""

    def read(self, asked: Asked) -> Reading:
        default, way = (self._bound(asked.spec, w) for w in (asked.default, asked.way))
        calls = {"default": default.raw(), "way": way.raw()}
        with one_core():
            return told(interleave(calls, asked.rounds), asked.reference)

    def _bound(self, spec: Spec, way: Way) -> Call:
        """The compiled call, whose results are right. Raises WrongResult if they are not."""
        return _bound(self, spec, way.kernel, tuple(sorted(way.parameters.items())))


@lru_cache(maxsize=KEPT)
def _bound(
    meter: HostMeter, spec: Spec, kernel: str, parameters: tuple[tuple[str, int], ...]
) -> Call:
    machine, tried = meter._machine, trying(spec)
    way = spec.with_parameters(dict(parameters))
    call = bind(kernel_of(Way(kernel, {})), way, tried.arrays, machine.lanes, machine.target)
    for result in call.results:
        result[...] = np.zeros((), result.dtype)
    call()
    tried.check(call.results)
    return call


def meter(core: Core) -> HostMeter | None:
    """For the core that this machine is."""
    if core.family != "cpu":
        return None
    own = cpu.host()
    return HostMeter(own) if core.name in ("host", own.name) else None
