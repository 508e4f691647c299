"""An engine that measures nothing, and a tuner on it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import attrs

from butterflyc.tuning.calls import Call
from butterflyc.tuning.database import Database
from butterflyc.tuning.measure import Asked, Reading
from butterflyc.tuning.search import Way
from butterflyc.tuning.trial import Task, Trial
from butterflyc.tuning.tuner import Budget, CallProgress, Tuner
from butterflyc.tuning.worker import Outcome

from .small import TOOLS, task_for

# What a way of a call takes; or a fault, in words.
Figures = Callable[[int, Way], float | str]


def by_tile(number: int, way: Way) -> float:
    """The larger the tile, the less."""
    return 1000.0 - way.parameters["tile"]


@attrs.define
class Fake:
    """An engine by ``figures``; ``width`` at once. ``asked`` is all that it was given, in order.

    It ends by ^C after ``patience`` outcomes, and calls ``meanwhile`` before each.
    """

    figures: Figures = by_tile
    width: int = 1
    patience: int = 10**6
    meanwhile: Callable[[], None] = lambda: None
    asked: list[tuple[Hashable, Asked]] = attrs.field(factory=list)
    running: list[tuple[Hashable, Asked]] = attrs.field(factory=list)
    most: int = 0

    def submit(self, key: Hashable, asked: Asked) -> None:
        self.asked.append((key, asked))
        self.running.append((key, asked))
        self.most = max(self.most, len(self.running))

    def finished(self, seconds: float) -> tuple[Hashable, Outcome] | None:
        self.meanwhile()
        if not self.patience:
            raise KeyboardInterrupt
        self.patience -= 1
        # The last one first: outcomes come in any order.
        key, asked = self.running.pop()
        found = self.figures(key[0] if isinstance(key, tuple) else key, asked.way)
        if isinstance(found, str):
            return key, Outcome(fault=found)
        return key, Outcome(Reading(found, 0.02))

    def close(self) -> None:
        self.running.clear()

    def tiles(self, number: int = 0) -> list[int]:
        """Of a call, which ways were asked for, in order."""
        keys = [key for key, _ in self.asked if isinstance(key, tuple)]
        return [way.parameters["tile"] for which, way in keys if which == number]


def tune(
    path: Path,
    calls: Sequence[Call],
    engine: Fake,
    trials: int | None = None,
    method: str = "instructions",
    **options: Any,
) -> tuple[list[CallProgress], bool]:
    """A run of a tuner on the database ``path``."""
    budget = options.pop("budget", Budget(trials=trials or 10**6))
    tasks = [task_for(call, method) for call in calls]
    with Database(path) as database:
        return Tuner(calls, tasks, TOOLS, database, engine, budget, **options).run()


def trial_of(call: Call, tile: int, value: float | None, **other: Any) -> Trial:
    """A record of way ``tile`` of ``call``."""
    task: Task = other.get("task", task_for(call))
    fault = "" if value is not None else "WrongResult: x"
    return Trial(task, other.get("tools", TOOLS), "k", {"tile": tile}, value, fault)


def add(path: Path, *trials: Trial) -> None:
    with Database(path) as database:
        for trial in trials:
            assert database.add(trial)
