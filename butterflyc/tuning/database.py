"""Trials in one SQLite file, each written at once: what was measured is not measured again.

Any number of tuners may write to it together, and one that is killed loses no trial that it has
finished.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from ..compiler.errors import CannotWrite, Damaged, Incompatible
from ..compiler.files import make_folder
from .trial import Task, Tools, Trial

SCHEMA = 1
# Seconds to wait for another tuner that writes.
PATIENCE = 60.0
COLUMNS = (
    "spec", "target", "features", "method", "instrument", "toolchain", "epoch", "kernel",
    "parameters", "value", "fault", "rounds",
)  # fmt: skip
IN_ORDER = "ORDER BY rowid"
OF_WAY = "toolchain = ? AND epoch = ? AND kernel = ? AND parameters = ?"
OF_TASK = "spec = ? AND target = ? AND features = ? AND method = ? AND instrument = ?"
MAKE = """\
CREATE TABLE IF NOT EXISTS trials (
    spec TEXT NOT NULL,
    target TEXT NOT NULL,
    features TEXT NOT NULL,
    method TEXT NOT NULL,
    instrument TEXT NOT NULL,
    toolchain TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    kernel TEXT NOT NULL,
    parameters TEXT NOT NULL,
    value REAL,
    fault TEXT NOT NULL,
    rounds INTEGER NOT NULL,
    UNIQUE (
        spec, target, features, method, instrument, toolchain, epoch, kernel, parameters
    )
)
"""


def default_path() -> Path:
    """The user's database: $BUTTERFLYC_TUNE_DB, or a file in the cache folder of the system."""
    if given := os.environ.get("BUTTERFLYC_TUNE_DB"):
        return Path(given)
    from platformdirs import user_cache_path

    return user_cache_path("butterflyc") / "tune.sqlite"


class Database:
    """The trials in the file ``path``, which is made if it is not there, unless ``read_only``.

    Raises Damaged for a file that is no such database, which is left as it is; Incompatible for one
    of a later butterflyc; CannotWrite where nothing can be written.
    """

    def __init__(self, path: Path, patience: float = PATIENCE, read_only: bool = False) -> None:
        self.path, self._read_only = path, read_only
        if not read_only:
            make_folder(path.parent)
        name = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        with self._told():
            self._connection = sqlite3.connect(
                name, timeout=patience, isolation_level=None, uri=True
            )
        try:
            with self._told():
                self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        ((found,),) = self._execute("PRAGMA user_version")
        if found > SCHEMA:
            raise Incompatible(
                f"the tuning records in {self.path} are of schema {found}, this butterflyc "
                f"reads up to {SCHEMA}",
                help="take a later butterflyc, or another file: set BUTTERFLYC_TUNE_DB",
            )
        faults = [text for (text,) in self._execute("PRAGMA quick_check") if text != "ok"]
        if faults:
            raise self._damaged(faults[0])
        if self._read_only:
            return
        # Readers go on while one writes, and a write that was cut short leaves no trace.
        self._execute("PRAGMA journal_mode = WAL")
        self._execute("PRAGMA synchronous = NORMAL")
        if found < SCHEMA:
            self._execute(MAKE)
            self._execute(f"PRAGMA user_version = {SCHEMA}")

    def add(self, trial: Trial) -> bool:
        """Writes ``trial``; False if that way was tried before, whose trial is kept."""
        places = ", ".join("?" * len(COLUMNS))
        text = f"INSERT OR IGNORE INTO trials ({', '.join(COLUMNS)}) VALUES ({places})"
        with self._told():
            return self._connection.execute(text, _row(trial)).rowcount == 1

    def forget(self, task: Task, tools: Tools, faults: Sequence[str]) -> int:
        """How many trials are taken out: those of ``task`` whose fault begins with one of these."""
        text = f"DELETE FROM trials WHERE {OF_TASK} AND toolchain = ? AND epoch = ? AND "
        alike = " OR ".join(["substr(fault, 1, ?) = ?"] * len(faults))
        starts = [part for fault in faults for part in (len(fault), fault)]
        with self._told():
            values = (*_row_of(task), tools.toolchain, tools.epoch, *starts)
            return self._connection.execute(f"{text}({alike})", values).rowcount

    def trials(self, task: Task, tools: Tools) -> tuple[Trial, ...]:
        """All of ``task`` by these ``tools``, in the order in which they were written."""
        return tuple(t for t in self._of(task) if t.tools == tools)

    def refine(self, trial: Trial) -> bool:
        """Whether ``trial`` takes the place of one of the same way, which was of fewer rounds."""
        where = f"{OF_TASK} AND {OF_WAY} AND rounds < ?"
        text = f"UPDATE trials SET value = ?, rounds = ? WHERE {where}"
        tools = trial.tools
        way = *_row_of(trial.task), tools.toolchain, tools.epoch, *trial.way
        with self._told():
            values = trial.value, trial.rounds, *way, trial.rounds
            return self._connection.execute(text, values).rowcount == 1

    def find(self, task: Task, tools: Tools, way: tuple[str, str]) -> Trial | None:
        """The trial of `Trial.way` ``way``, if it was tried."""
        text = f"SELECT {', '.join(COLUMNS)} FROM trials WHERE {OF_TASK} AND {OF_WAY}"
        found = self._read(text, (*_row_of(task), tools.toolchain, tools.epoch, *way))
        return found[0] if found else None

    def alike(self, task: Task, tools: Tools) -> tuple[Trial, ...]:
        """Trials of the same call on the same target that are not of ``task`` by ``tools``.

        They hold figures, which say nothing of this task but may be hints.
        """
        text = f"SELECT {', '.join(COLUMNS)} FROM trials WHERE spec = ? AND target = ? {IN_ORDER}"
        found = self._read(text, (task.spec, task.target))
        return tuple(t for t in found if (t.task, t.tools) != (task, tools) and t.value is not None)

    def of_target(self, target: str) -> tuple[Trial, ...]:
        """All trials for ``target``, in the order in which they were written."""
        text = f"SELECT {', '.join(COLUMNS)} FROM trials WHERE target = ? {IN_ORDER}"
        return tuple(self._read(text, (target,)))

    def best(self, task: Task, tools: Tools) -> Trial | None:
        """The trial of the least figure; of equal ones, the same on every machine."""
        good = [t for t in self.trials(task, tools) if t.value is not None]
        return min(good, key=lambda t: (t.value, t.way), default=None)

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._read(f"SELECT {', '.join(COLUMNS)} FROM trials {IN_ORDER}", ()))

    def __len__(self) -> int:
        with self._told():
            ((count,),) = self._execute("SELECT COUNT(*) FROM trials")
        return int(count)

    def close(self) -> None:
        # A damaged file may refuse even that.
        with suppress(sqlite3.Error):
            self._connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def _of(self, task: Task) -> list[Trial]:
        text = f"SELECT {', '.join(COLUMNS)} FROM trials WHERE {OF_TASK} {IN_ORDER}"
        return self._read(text, _row_of(task))

    def _read(self, text: str, values: Iterable[object]) -> list[Trial]:
        with self._told():
            rows = self._execute(text, values)
        try:
            return [_trial(row) for row in rows]
        except (TypeError, ValueError, AttributeError) as error:
            raise self._damaged(f"a row that is no trial: {error}") from error

    def _execute(self, text: str, values: Iterable[object] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(text, tuple(values)).fetchall()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise CannotWrite(
                f"the tuning records in {self.path} cannot be used: {error}",
                help="free space, give permission, end other tuners, or set BUTTERFLYC_TUNE_DB",
            ) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> Damaged:
        return Damaged(
            f"{self.path} is no database of tuning records, or a damaged one: {why}",
            help="it was left as it is; move it away, or name another: set BUTTERFLYC_TUNE_DB",
        )


def _row(trial: Trial) -> tuple[object, ...]:
    task, tools = trial.task, trial.tools
    figure = trial.value, trial.fault, trial.rounds
    return (*_row_of(task), tools.toolchain, tools.epoch, *trial.way, *figure)


def _row_of(task: Task) -> tuple[str, ...]:
    features = json.dumps(task.features)
    return task.spec, task.target, features, task.method, task.instrument


def _trial(row: tuple[Any, ...]) -> Trial:
    spec, target, features, method, instrument, toolchain, epoch, kernel, parameters, *rest = row
    value, fault, rounds = rest
    task = Task(spec, target, tuple(json.loads(features)), method, instrument)
    held = {str(name): int(number) for name, number in json.loads(parameters).items()}
    return Trial(task, Tools(toolchain, int(epoch)), kernel, held, value, fault, int(rounds))
