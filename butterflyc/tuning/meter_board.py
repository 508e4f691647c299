"""Time on a board that ssh reaches: a way and the default one in turns, in one program there."""

from __future__ import annotations

from ..bench.timing import Timings
from ..compiler.errors import Unsupported
from ..compiler.run.executions import ARCHITECTURES
from ..compiler.run.hosted import Place
from ..compiler.run.remote import remote
from ..compiler.run.timed_call import name_of, time_beside
from ..kernels.record import Kernel, Spec
from ..targets import cpu
from ..targets.registry import Core
from .measure import Asked, Reading, kernel_of, told, trying
from .search import Way


class BoardMeter:
    """CPU seconds of one call at ``place``, of which one thing at a time may be asked."""

    method, alone, limit = "time", True, 600.0

    def __init__(self, core: Core, place: Place) -> None:
        self.target = core.name
        self._machine, self._place = cpu.machine(core), place

    def features(self) -> tuple[str, ...]:
        """The board's name. Raises what reaching it does."""
        return (name_of(self._place, self._machine.target),)

    def instrument(self) -> str:
        return ""

    def read(self, asked: Asked) -> Reading:
        tried, machine = trying(asked.spec), self._machine

        def ready(way: Way) -> tuple[Kernel, Spec]:
            return kernel_of(way), asked.spec.with_parameters(way.parameters)

        ways = ready(asked.way), ready(asked.default)
        timed = time_beside(
            self._place, ways, tried.arrays, machine.lanes, machine.target, asked.rounds
        )
        tried.check(timed.results)
        ours, default = (tuple(map(float, side)) for side in timed.seconds.T)
        return told(Timings({"way": ours, "default": default}), asked.reference)


def meter_at(core: Core, place: str) -> BoardMeter:
    """For the board that ``place`` names, whose processor is ``core``.

    Raises Unsupported for what runs no program of Linux, UsageError for another place, ToolMissing.
    """
    if core.family != "cpu" or not core.triple.startswith(tuple(ARCHITECTURES)):
        raise Unsupported(
            f"kernels for {core.name} are not timed over ssh",
            help="a board with Linux is: --target cortex-a72 --on ssh:pi@raspberrypi.local",
        )
    return BoardMeter(core, remote(place))
