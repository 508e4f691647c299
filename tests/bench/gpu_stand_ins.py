"""What stands in for a GPU in tests of the benchmark: clocks that we set, and a torch.cuda."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from butterflyc.bench.gpu.device import Rehearsal


class Scripted(Rehearsal):
    """A device that takes so many seconds for a call, by the name of who calls, or one."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        super().__init__()
        self.taken = seconds
        self.rounds: list[tuple[tuple[str, ...], int, bool]] = []

    def seconds(self, calls, rounds, cold):
        self.rounds.append((tuple(calls), rounds, cold))
        for call in calls.values():
            call()
        return {name: [self.taken.get(name, 1.0)] * rounds for name in calls}


class Timed(Scripted):
    """The same, which is no rehearsal: rounds are as many as time allows."""

    rehearsal = False


class Stream:
    cuda_stream = 7

    def wait_stream(self, other: Stream) -> None:
        pass


class Event:
    """Its time is how many calls were made before it."""

    def __init__(self, fake: FakeCuda) -> None:
        self._fake = fake

    def record(self) -> None:
        self.at = self._fake.calls

    def elapsed_time(self, last: Event) -> float:
        return (last.at - self.at) * 1e3


class FakeCuda:
    """The functions of torch.cuda that the benchmark calls, on a machine without a GPU."""

    def __init__(self) -> None:
        self.calls = 0
        self.log: list[str] = []
        self.reserved = 0
        self.lost = ""

    def install(self, monkeypatch: Any) -> None:
        replaced: dict[str, Callable[..., Any]] = {
            "is_available": lambda: True,
            "get_device_properties": lambda _: SimpleNamespace(
                name="NVIDIA Stand-in", L2_cache_size=64, total_memory=1000
            ),
            "get_device_capability": lambda: (9, 0),
            "current_stream": Stream,
            "Stream": Stream,
            "stream": self._stream,
            "graph": self._graph,
            "CUDAGraph": lambda: SimpleNamespace(replay=self._replay),
            "Event": lambda enable_timing: Event(self),
            "memory_reserved": lambda: self.reserved,
            "empty_cache": lambda: self.log.append("empty"),
            "synchronize": self._synchronize,
        }
        for name, function in replaced.items():
            monkeypatch.setattr(torch.cuda, name, function)
        real = torch.empty
        monkeypatch.setattr(
            torch, "empty", lambda *size, **kinds: real(*size, **{**kinds, "device": "cpu"})
        )

    def _replay(self) -> None:
        self.calls += 1
        self.log.append("replay")

    def _synchronize(self) -> None:
        if self.lost:
            raise RuntimeError(self.lost)
        self.log.append("wait")

    @contextmanager
    def _stream(self, _: Stream) -> Any:
        self.log.append("aside")
        yield

    @contextmanager
    def _graph(self, _: Any) -> Any:
        self.log.append("capture")
        yield
