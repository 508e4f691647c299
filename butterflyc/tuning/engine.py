"""Where measurements run: in processes on this machine, some of them at once."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Protocol

from ..targets.registry import Core
from .engine_ray import Cluster, check_address
from .measure import HERE, Asked, Meter
from .worker import Outcome, Worker


class Engine(Protocol):
    """Measures up to ``width`` ways at once, for one core."""

    width: int

    def submit(self, key: Hashable, asked: Asked) -> None:
        """Have ``asked`` measured; `finished` will name it by ``key``."""

    def finished(self, seconds: float) -> tuple[Hashable, Outcome] | None:
        """One that is done, waiting for it; None if none is within so many ``seconds``."""

    def close(self) -> None:
        """Ends what is running, whose outcomes are lost."""


class Local:
    """``width`` processes on this machine, each of which measures one way at a time."""

    def __init__(self, core: Core, width: int, limit: float, place: str = HERE) -> None:
        self.width = width
        self._workers = [Worker(core, limit, place) for _ in range(width)]
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(width)
        self._running: dict[Future[Outcome], Hashable] = {}

    def submit(self, key: Hashable, asked: Asked) -> None:
        self._running[self._threads.submit(self._read, asked)] = key

    def finished(self, seconds: float) -> tuple[Hashable, Outcome] | None:
        done, _ = wait(self._running, seconds, FIRST_COMPLETED)
        if not done:
            return None
        future = next(future for future in self._running if future in done)
        return self._running.pop(future), future.result()

    def close(self) -> None:
        # Those that wait must not start, those that run end with their process.
        for future in self._running:
            future.cancel()
        for worker in self._workers:
            worker.close()
        self._threads.shutdown()

    def _read(self, asked: Asked) -> Outcome:
        worker = self._idle.get()
        try:
            return worker.read(asked)
        finally:
            self._idle.put(worker)


@contextmanager
def engine(name: str, core: Core, place: str, meter: Meter, instrument: str) -> Iterator[Engine]:
    """The engine called ``name``: ``local``, or a cluster of `engine_ray`.

    On this machine: a process for each of its cores, or one if ``meter`` must be alone; they
    measure at ``place``. Raises
    UsageError for another name, and what `engine_ray.Cluster` raises.
    """
    if name == "local":
        made: Engine = Local(core, 1 if meter.alone else _cores(), meter.limit, place)
    else:
        check_address(name, meter.alone)
        made = Cluster(core, name, meter.limit, instrument)
    try:
        yield made
    finally:
        made.close()


def _cores() -> int:
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return there or 1
