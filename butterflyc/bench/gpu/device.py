"""Where the benchmark runs: a GPU, or for a rehearsal the CPU with Triton's interpreter."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import torch

from ...compiler.errors import ButterflycError, ToolMissing
from ...compiler.lower.cubin import Code, compile_all
from ...compiler.run.cuda_driver import Driver
from ...compiler.run.gpu import Driven, Interpreted
from ...compiler.run.sass import Resources, resources
from ...kernels.gpu.launch import Gpu, Launch, Plan

BATCH = 64
# Of memory: what PyTorch may hold when a graph is captured.
CACHED_PART = 0.4
Call = Callable[[], Any]
LATE = "not compiled: the time for it was over"
SPILLS = "registers spill"


class DeviceLost(Exception):
    """The device answers no more, in this process, since ``kernel`` ran."""

    def __init__(self, kernel: str, why: str) -> None:
        super().__init__(f"{kernel} left the GPU unusable: {why}")
        self.kernel = kernel


class Clock:
    """The time that is left of ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._end = monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - monotonic()

    def part(self, seconds: float) -> Clock:
        """A clock for the next step: so many seconds, if they are left."""
        return Clock(min(seconds, self.left))


class Device(Protocol):
    """What the steps of the benchmark need of a machine."""

    # PyTorch's name of it, and what it is called.
    place: str
    name: str
    gpu: Gpu
    # Bytes of the last cache, and of memory.
    cache_bytes: int
    memory_bytes: int
    # Whether times mean nothing.
    rehearsal: bool

    def compile(
        self, launches: Iterable[Launch], clock: Clock, spilling: bool = False
    ) -> dict[str, str]:
        """Makes code of launches; by symbol, why there is none.

        ``spilling``: code that spills registers is good enough.
        """

    def how(self, plan: Plan) -> Interpreted | Driven:
        """What does the launches of ``plan``, which are compiled."""

    def captured(self, call: Call) -> Call:
        """``call`` so that it costs the host one launch."""

    def optimised(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` under torch.compile, for tensors of one shape."""

    def seconds(self, calls: Mapping[str, Call], rounds: int, cold: bool) -> dict[str, list[float]]:
        """What each of ``calls`` takes, in turns; ``cold``: with nothing of it in the cache."""

    def wait(self) -> None:
        """Until all is done that was begun."""

    def release(self) -> None:
        """Gives memory back that nothing uses."""


def launches_of(plan: Plan) -> list[Launch]:
    return [step for step in plan.steps if isinstance(step, Launch)]


@dataclass
class Codes:
    """Compiled kernels by symbol, what they use, and why others are not there.

    So many are compiled between two looks at the clock as are a ``batch``.
    """

    capability: int
    folder: Path
    batch: int = BATCH
    found: dict[str, Code] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    uses: dict[str, Resources] = field(default_factory=dict)

    def add(self, launches: Iterable[Launch], clock: Clock, spilling: bool) -> dict[str, str]:
        """Compiles what is new; by symbol, why there is no code that will do."""
        wanted = {launch.symbol: launch for launch in launches}
        known = {*self.found, *self.failed}
        new = [launch for symbol, launch in wanted.items() if symbol not in known]
        for start in range(0, len(new), self.batch):
            if clock.left > 0:
                self._compile(new[start : start + self.batch], clock)
        late = {symbol: LATE for symbol in wanted if symbol not in self.found}
        spilled = {
            symbol: f"{SPILLS}: {use.spills} loads and stores of them"
            for symbol, use in self.uses.items()
            if use.spills
        }
        refused = self.failed if spilling else {**self.failed, **spilled}
        return {**late, **{symbol: why for symbol, why in refused.items() if symbol in wanted}}

    def _compile(self, launches: Sequence[Launch], clock: Clock) -> None:
        """All at once; where one fails, the halves, since Triton keeps what it has compiled."""
        try:
            made = compile_all(launches, self.capability, cache=self.folder)
        except ButterflycError as error:
            if len(launches) == 1:
                self.failed[launches[0].symbol] = str(error)
                return
            middle = len(launches) // 2
            for half in (launches[:middle], launches[middle:]):
                if clock.left > 0:
                    self._compile(half, clock)
            return
        with ThreadPoolExecutor() as pool:
            used = pool.map(resources, (code.cubin for code in made.values()))
            self.uses |= dict(zip(made, used, strict=True))
        self.found |= made


class Cuda:
    """The first GPU that torch sees. Raises ToolMissing where there is none."""

    rehearsal = False
    place = "cuda"

    def __init__(self, folder: Path, gpu: Gpu) -> None:
        facts = torch.cuda.get_device_properties(0)
        self.name = facts.name
        self.gpu = gpu
        self.cache_bytes, self.memory_bytes = facts.L2_cache_size, facts.total_memory
        self.codes = Codes(gpu.capability, folder)
        # Written over before a call that is to find nothing in the cache.
        self._spoil = torch.empty(2 * self.cache_bytes, dtype=torch.int8, device="cuda")

    def compile(
        self, launches: Iterable[Launch], clock: Clock, spilling: bool = False
    ) -> dict[str, str]:
        return self.codes.add(launches, clock, spilling)

    def how(self, plan: Plan) -> Driven:
        symbols = {launch.symbol for launch in launches_of(plan)}
        return Driven(Driver([self.codes.found[symbol] for symbol in symbols]))

    def captured(self, call: Call) -> Call:
        # What is cached cannot be given back while a graph is captured.
        if torch.cuda.memory_reserved() > CACHED_PART * self.memory_bytes:
            torch.cuda.empty_cache()
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            call()  # libraries set up what they need, which cannot be captured
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def optimised(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, dynamic=False)

    def seconds(self, calls: Mapping[str, Call], rounds: int, cold: bool) -> dict[str, list[float]]:
        names = list(calls)
        events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in names}
        for number in range(rounds):
            for i in range(len(names)):
                name = names[(number + i) % len(names)]
                if cold:
                    self._spoil.zero_()
                first, last = _event(), _event()
                first.record()
                calls[name]()
                last.record()
                events[name].append((first, last))
        self.wait()
        return {
            name: [first.elapsed_time(last) / 1e3 for first, last in pairs]
            for name, pairs in events.items()
        }

    def wait(self) -> None:
        torch.cuda.synchronize()

    def release(self) -> None:
        self.wait()
        gc.collect()
        torch.cuda.empty_cache()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class Rehearsal:
    """The CPU in place of a GPU: launches are interpreted, and every call takes a second."""

    rehearsal = True
    place = "cpu"
    name = "rehearsal"
    cache_bytes = 1 << 16
    memory_bytes = 1 << 30

    def __init__(self) -> None:
        self.gpu = Gpu()

    def compile(
        self, launches: Iterable[Launch], clock: Clock, spilling: bool = False
    ) -> dict[str, str]:
        return {}

    def how(self, plan: Plan) -> Interpreted:
        return Interpreted()

    def captured(self, call: Call) -> Call:
        return call

    def optimised(self, function: Callable[..., Any]) -> Callable[..., Any]:
        # Traced as on a GPU; code for this CPU would say nothing.
        return torch.compile(function, dynamic=False, backend="eager")

    def seconds(self, calls: Mapping[str, Call], rounds: int, cold: bool) -> dict[str, list[float]]:
        for call in calls.values():
            call()
        return {name: [1.0] * rounds for name in calls}

    def wait(self) -> None:
        pass

    def release(self) -> None:
        pass


def check_alive(device: Device, kernel: str, error: BaseException) -> None:
    """Raises DeviceLost if ``kernel``, after which ``error`` came, left nothing that works."""
    try:
        device.wait()
    except RuntimeError as lost:
        raise DeviceLost(kernel, str(lost)) from error


def find(folder: Path, rehearsal: bool) -> Device:
    """The GPU of this machine, or what stands in for it; ``folder`` is for compiled kernels.

    Raises ToolMissing where there is no GPU.
    """
    if rehearsal:
        return Rehearsal()
    if not torch.cuda.is_available():
        raise ToolMissing(
            "kernels are measured on a GPU, and torch sees none here",
            help="run this on a machine with an NVIDIA GPU and a torch for CUDA; "
            "--dry-run goes through all steps on this CPU and times nothing",
        )
    from ...targets.cuda import here, machine

    return Cuda(folder, machine(here()).lanes)
