"""Timing that can be trusted on a noisy machine: contenders take turns in one process.

In each round every contender runs for about the same time; ratios are taken within a round, so a
machine that slows down slows both sides. Time is CPU time of the calling thread, which does all the
work: what other programs take of the core does not count. Reported: median ratio and quartiles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from statistics import quantiles
from time import thread_time
from typing import Any

import numpy as np

ROUND_SECONDS = 0.02
WARMUP_CALLS = 3


@dataclass(frozen=True)
class Timings:
    """CPU seconds a call, contender by round."""

    seconds: Mapping[str, tuple[float, ...]]

    def best(self, name: str) -> float:
        return min(self.seconds[name])

    def median(self, name: str) -> float:
        return float(np.median(self.seconds[name]))

    def ratio(self, slower: str, faster: str) -> tuple[float, float]:
        """How many times as long ``slower`` takes, round by round: (median, quartile spread)."""
        pairs = zip(self.seconds[slower], self.seconds[faster], strict=True)
        ratios = [a / b for a, b in pairs]
        low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        return middle, high - low


def interleave(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int = 15,
    progress: Callable[[str], None] = lambda _: None,
) -> Timings:
    """Time all ``contenders`` in turns. Each round starts with another one."""
    counts = {}
    for name, call in contenders.items():
        progress(f"warming up {name}")
        for _ in range(WARMUP_CALLS):
            call()
        counts[name] = max(1, int(ROUND_SECONDS / max(_time(call, 1), 1e-7)))
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        for i in range(len(names)):
            name = names[(number + i) % len(names)]
            seconds[name].append(_time(contenders[name], counts[name]))
    return Timings({name: tuple(values) for name, values in seconds.items()})


def _time(call: Callable[[], Any], count: int) -> float:
    start = thread_time()
    for _ in range(count):
        call()
    return (thread_time() - start) / count


@contextmanager
def one_core() -> Any:
    """Keeps this process, and torch if it is there, on one core and one thread."""
    import sys

    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 1
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if torch:
        torch.set_num_threads(1)
    if allowed:
        with suppress(OSError):
            os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        if allowed:
            os.sched_setaffinity(0, allowed)
        if torch:
            torch.set_num_threads(threads)


@dataclass(frozen=True)
class Row:
    """One line of a benchmark: ``value`` against ``baseline``, their ``ratio`` and its spread.

    ``ratio`` is how many times as fast as the baseline, or for a fraction of a peak the fraction.
    """

    suite: str
    name: str
    shape: str
    metric: str
    value: float
    baseline: str
    ratio: float
    spread: float
    threads: int = 1
    target_ratio: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))
