"""An engine that measures in this process, one way after another."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from butterflyc.tuning.measure import Asked, Meter
from butterflyc.tuning.worker import Outcome


class Inline:
    """``meter`` is asked when an outcome is."""

    width = 1

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._waiting: deque[tuple[Hashable, Asked]] = deque()

    def submit(self, key: Hashable, asked: Asked) -> None:
        self._waiting.append((key, asked))

    def finished(self, seconds: float) -> tuple[Hashable, Outcome] | None:
        key, asked = self._waiting.popleft()
        return key, Outcome(self._meter.read(asked))

    def close(self) -> None:
        self._waiting.clear()
