"""Time on this machine's GPU: a way and the default one in turns, as captured calls.

Few tokens are timed on many copies of the weights, which no cache holds together, many behind a
cache that was written over (`bench.gpu.contender`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bench.timing import Timings
from ..compiler.errors import ToolFailed, ToolMissing
from ..compiler.ir.ops import OPS
from ..kernels.gpu.launch import Gpu
from ..kernels.record import Spec
from ..targets import cuda
from ..targets.registry import Core
from .measure import Asked, Reading, Trying, told, trying
from .search import Way

if TYPE_CHECKING:
    from ..bench.gpu.device import Device
    from ..bench.gpu.ours import Way as Planned

# Seconds for the kernels of one way to be compiled, which takes some of them one each.
COMPILING = 300.0


class GpuMeter:
    """Seconds of one call. Each round's ratio to the default way counts, the median of them.

    ``find`` gives the device, and a folder for its compiled kernels; by default the GPU that is
    here.
    """

    method, alone, limit = "time", True, 600.0

    def __init__(self, core: Core, find: Callable[[Path], Device] | None = None) -> None:
        own = cuda.here() if core.cpu == "native" else core
        self.target, self._gpu = own.name, cuda.machine(own).lanes
        self._find = find or self._here

    def features(self) -> tuple[str, ...]:
        """The driver's name of the GPU; nothing where none of the core's kind is here."""
        name = cuda.device_name(self._gpu.capability)
        return (name,) if name else ()

    def instrument(self) -> str:
        """What says the time. Raises ToolMissing where no GPU of the core's kind is here."""
        if not self.features():
            raise ToolMissing(
                f"kernels for {self.target} are timed on a GPU of that kind, and none is here",
                help="tune on a machine that has one, and bring the records (--export, --import); "
                "--check compiles all ways here, and says what their code takes",
            )
        return ""

    def read(self, asked: Asked) -> Reading:
        from ..bench.gpu.device import DeviceLost, check_alive
        from ..bench.gpu.measure import ERRORS

        try:
            return self._read(asked)
        except ERRORS as error:
            # A fault of a launch may be told by whatever waits for it next.
            try:
                check_alive(self._device, asked.way.kernel, error)
            except DeviceLost as lost:
                # Nothing can be timed by this process any more: its parent starts another.
                raise SystemExit(str(lost)) from lost
            raise

    def _read(self, asked: Asked) -> Reading:
        device, tried = self._device, trying(asked.spec)
        sides = {"default": asked.default, "way": asked.way}
        timed = {name: _timed(device, asked.spec, way, tried) for name, way in sides.items()}
        # What is timed once a round finds nothing in the cache.
        cold = all(each.calls == 1 for each in timed.values())
        made = {name: each.call for name, each in timed.items()}
        seconds = device.seconds(made, asked.rounds, cold)
        each = {n: tuple(s / timed[n].calls for s in values) for n, values in seconds.items()}
        return told(Timings(each), asked.reference)

    @cached_property
    def _device(self) -> Device:
        self._folder = TemporaryDirectory(prefix="butterflyc-triton-")
        return self._find(Path(self._folder.name))

    def _here(self, folder: Path) -> Device:
        from ..bench.gpu.device import Cuda

        return Cuda(folder, self._gpu)


@dataclass(frozen=True)
class _Timed:
    """``call`` is so many ``calls`` of a way, as one launch."""

    call: Callable[[], Any]
    calls: int


def _timed(device: Device, spec: Spec, way: Way, tried: Trying) -> _Timed:
    """A way, whose result is right. Raises WrongResult, ToolFailed, and what launches do."""
    from ..bench.gpu.contender import calls_for, copies_for
    from ..bench.gpu.ours import GIVEN, Cloned, Constants, Runner, tensor, touched_bytes
    from ..bench.gpu.problem import Shape

    found, names = _compiled(device, spec, way), OPS[spec.op].names
    arrays = dict(zip(names, tried.arrays, strict=False))
    types = dict(zip(names, spec.operands, strict=False))
    constants = Constants(arrays, device.place)
    x, gates, experts = (tensor(arrays[n], types[n].dtype, device.place) for n in GIVEN)
    sizes = types["x"].shape[1], types["w"].shape[0], types["pairs_in"].shape[0], x.shape[0]
    touched = touched_bytes(found, constants, len(np.unique(arrays["experts"])))
    copies = copies_for(device, Shape(*sizes), touched, touched)
    calls, how = calls_for(device, Shape(*sizes), copies), device.how(found.plan)
    runners = [Runner(found, device, how, Cloned(constants), x) for _ in range(copies)]

    def call() -> None:
        for number in range(calls):
            runners[number % copies].run(gates, experts)

    tried.check([runners[0].run(gates, experts).float().cpu().numpy()])
    return _Timed(device.captured(call), calls)


def planned(spec: Spec, way: Way, gpu: Gpu) -> Planned:
    """What ``way`` does for ``spec``, launch by launch. Raises ToolMissing without Triton."""
    from ..bench.gpu.ours import way as made

    kernel = next(kernel for kernel in cuda.kernels() if kernel.name == way.kernel)
    return made(kernel, spec, gpu, way.parameters)


def _compiled(device: Device, spec: Spec, way: Way) -> Planned:
    """The plan of a way, whose kernels the device has. Raises ToolFailed."""
    from ..bench.gpu.device import Clock, launches_of

    found = planned(spec, way, device.gpu)
    failed = device.compile(launches_of(found.plan), Clock(COMPILING), spilling=True)
    if failed:
        raise ToolFailed("; ".join(sorted(set(failed.values()))))
    return found


def meter(core: Core) -> GpuMeter | None:
    """For NVIDIA GPUs."""
    return GpuMeter(core) if core.family == "cuda" else None
