"""Trials of the ways to compute the calls of a model, one after another, each kept at once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from time import monotonic

import attrs

from ..compiler.errors import UsageError
from .calls import Call
from .database import Database
from .engine import Engine
from .measure import ROUNDS, Asked, Reading
from .search import Search, Way
from .trial import Task, Tools, Trial, way_text
from .worker import Outcome

# Rounds by which the best ways of a time are measured in the end, and how many at most.
CONFIRMING, CONFIRMED = 30, 10
# How long to wait for a measurement before looking whether time is up.
PATIENCE = 0.5
UNITS = {"s": 1, "m": 60, "h": 3600}


@attrs.frozen
class Budget:
    """Until when to search: so many ``seconds``, or so many ``trials`` of each call."""

    seconds: float | None = None
    trials: int | None = None


def budget_of(text: str) -> Budget:
    """The budget that a text like ``90s``, ``5m``, ``1.5h`` or ``64`` says. Raises UsageError."""
    if re.fullmatch(r"[1-9]\d*", text):
        return Budget(trials=int(text))
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if found is None or not float(found[1]):
        raise UsageError(
            f"a budget of '{text}'",
            help="give a time as 90s, 5m or 1h; or how many trials each kernel gets, as 64",
        )
    return Budget(seconds=float(found[1]) * UNITS[found[2]])


@attrs.define
class CallProgress:
    """How far a call is: what was tried of it, by this run and, ``earlier``, by others.

    ``hints`` are records of it that are of other tools, machines or methods. ``confirmed`` is what
    this run read of the best way in `CONFIRMING` rounds, where times are measured.
    """

    call: Call
    task: Task
    trials: list[Trial] = attrs.field(factory=list)
    earlier: int = 0
    hints: int = 0
    confirmed: Reading | None = None
    running: int = 0

    @property
    def default(self) -> Trial | None:
        """The trial of what is taken where nothing was measured; None before that was tried."""
        first = self.call.ways[0]
        return next((trial for trial in self.trials if _is(trial, first)), None)

    @property
    def best(self) -> Trial | None:
        good = [trial for trial in self.trials if trial.value is not None]
        return min(good, key=lambda trial: (trial.value, trial.way), default=None)

    @property
    def gain(self) -> float | None:
        """How many times as long the default way takes as the best one."""
        default, best = self.default, self.best
        if default is None or default.value is None or best is None or best.value is None:
            return None
        return default.value / best.value if best.value else 1.0

    @property
    def faults(self) -> Counter[str]:
        """What was wrong with ways that have no figure, by the first word of it."""
        return Counter(trial.fault.partition(":")[0] for trial in self.trials if trial.fault)

    @property
    def best_so_far(self) -> list[float]:
        """The least figure after each trial that has one."""
        found: list[float] = []
        for trial in self.trials:
            if trial.value is not None:
                found.append(min([trial.value, *found[-1:]]))
        return found


@attrs.frozen
class Tuner:
    """Searches the ways of ``tasks``, which are those of ``calls``, until a ``budget`` is used up.

    Trials that ``database`` holds are not made again. ``on_trial`` is called with each new one and
    the progress of its call.
    """

    calls: Sequence[Call]
    tasks: Sequence[Task]
    tools: Tools
    database: Database
    engine: Engine
    budget: Budget
    seed: int = 0
    on_trial: Callable[[Trial, CallProgress], None] = lambda trial, progress: None

    def run(self) -> tuple[list[CallProgress], bool]:
        """The progress of each call; and whether it was interrupted, by which nothing is lost."""
        pairs = zip(self.calls, self.tasks, strict=True)
        states = [_State.of(i, *pair, self) for i, pair in enumerate(pairs)]
        interrupted = False
        try:
            self._search(states)
            self._confirm(states)
        except KeyboardInterrupt:
            interrupted = True
        return [state.progress for state in states], interrupted

    def _search(self, states: list[_State]) -> None:
        end = monotonic() + self.budget.seconds if self.budget.seconds else None
        running = 0
        while True:
            while running < self.engine.width and (end is None or monotonic() < end):
                if not self._start_one(states):
                    break
                running += 1
            if not running:
                return
            done = self.engine.finished(PATIENCE)
            if done is not None:
                running -= 1
                self._keep(states, *done)  # type: ignore[arg-type]

    def _is_open(self, state: _State) -> bool:
        most = self.budget.trials
        tried = len(state.progress.trials) + state.progress.running
        return state.is_open and (most is None or tried < most)

    def _start_one(self, states: list[_State]) -> bool:
        """Has a way of the most urgent call measured; False if there is none to measure now."""
        while open_ := [state for state in states if self._is_open(state)]:
            state = max(open_, key=_State.urgency)
            way = state.next(self.database, self.tools)
            if way is not None:
                state.progress.running += 1
                self.engine.submit((state.number, way), state.asked(way))
                return True
        return False

    def _keep(self, states: list[_State], key: tuple[int, Way], outcome: Outcome) -> None:
        number, way = key
        state = states[number]
        value = outcome.reading.value if outcome.reading else None
        made = state.progress.task, self.tools, way.kernel, way.parameters
        trial = Trial(*made, value, outcome.fault, ROUNDS if state.is_timed else 1)
        state.progress.running -= 1
        if not self.database.add(trial):
            # Another tuner was faster, and what it has measured is what is kept.
            trial = self.database.find(trial.task, self.tools, trial.way) or trial
            state.progress.earlier += 1
        state.tell(trial)
        self.on_trial(trial, state.progress)

    def _confirm(self, states: list[_State]) -> None:
        """Times the best way of each call for longer, until the best one is one of that kind.

        Of many short measurements the least is mostly luck.
        """
        for state in filter(lambda state: state.is_timed, states):
            for _ in range(CONFIRMED):
                best = state.progress.best
                if best is None or best.rounds >= CONFIRMING or _is(best, state.call.ways[0]):
                    break
                if not self._refine(state, best):
                    break

    def _refine(self, state: _State, trial: Trial) -> bool:
        """Measures the way of a trial once more, for `CONFIRMING` rounds; False if that fails."""
        way = Way(trial.kernel, trial.parameters)
        self.engine.submit(state.number, state.asked(way, CONFIRMING))
        while (done := self.engine.finished(PATIENCE)) is None:
            pass
        reading = done[1].reading
        if reading is None:
            return False
        better = attrs.evolve(trial, value=reading.value, rounds=CONFIRMING)
        self.database.refine(better)
        state.progress.confirmed = reading
        trials = state.progress.trials
        trials[trials.index(trial)] = better
        return True


class _State:
    """A call that is searched."""

    def __init__(self, number: int, progress: CallProgress, search: Search) -> None:
        self.number, self.progress, self._search = number, progress, search
        # Without a figure of the default way there is nothing to compare with.
        self.is_open = not (progress.default and progress.default.fault)

    @classmethod
    def of(cls, number: int, call: Call, task: Task, tuner: Tuner) -> _State:
        """A call, with what the database holds of it."""
        known = [*_known(call, tuner.database.trials(task, tuner.tools))]
        alike = tuner.database.alike(task, tuner.tools)
        search = Search(call.ways, tuner.seed, [*_hints(call, alike)])
        for trial in known:
            search.tell(Way(trial.kernel, trial.parameters), trial.value)
        return cls(number, CallProgress(call, task, known, len(known), len(alike)), search)

    @property
    def call(self) -> Call:
        return self.progress.call

    @property
    def is_timed(self) -> bool:
        return self.progress.task.method == "time"

    def urgency(self) -> float:
        """What a call takes of an inference, by how often it was tried."""
        default = self.progress.default
        share = default.value if default and default.value is not None else float("inf")
        return share * self.call.count / (1 + len(self.progress.trials) + self.progress.running)

    def next(self, database: Database, tools: Tools) -> Way | None:
        """What to measure now; None where nothing is left."""
        while (way := self._search.next()) is not None:
            # Another tuner may have tried it meanwhile.
            text = way_text(way.kernel, way.parameters)
            other = database.find(self.progress.task, tools, text)
            if other is None:
                # Others are told in the figure of the default way: they wait for it.
                self.is_open = self.progress.default is not None
                return way
            self.progress.earlier += 1
            self.tell(other)
            if not self.is_open:
                return None
        self.is_open = False
        return None

    def tell(self, trial: Trial) -> None:
        """What was measured of this call."""
        self.progress.trials.append(trial)
        self._search.tell(Way(trial.kernel, trial.parameters), trial.value)
        if _is(trial, self.call.ways[0]):
            self.is_open = trial.value is not None

    def asked(self, way: Way, rounds: int = ROUNDS) -> Asked:
        default = self.progress.default
        reference = default.value if default else None
        return Asked(self.call.spec, way, self.call.ways[0], reference, rounds)


def _is(trial: Trial, way: Way) -> bool:
    return trial.way == way_text(way.kernel, way.parameters)


def _known(call: Call, trials: Sequence[Trial]) -> Iterator[Trial]:
    """Those of ways that the call still has."""
    ways = {way_text(way.kernel, way.parameters) for way in call.ways}
    yield from (trial for trial in trials if trial.way in ways)


def _hints(call: Call, trials: Sequence[Trial]) -> Iterator[Way]:
    """The best way of each other task, or other tools, that the call still has."""
    best: dict[tuple[Task, Tools], Trial] = {}
    for trial in _known(call, trials):
        group = trial.task, trial.tools
        if group not in best or (trial.value or 0.0) < (best[group].value or 0.0):
            best[group] = trial
    for trial in best.values():
        yield Way(trial.kernel, trial.parameters)
