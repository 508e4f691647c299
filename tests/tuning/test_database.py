"""Trials are kept: by many tuners at once, killed or not, and a bad file is told."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.errors import CannotWrite, Damaged, Incompatible
from butterflyc.tuning.database import SCHEMA, Database
from butterflyc.tuning.exchange import from_lines, import_into, to_lines
from butterflyc.tuning.trial import METHODS, Task, Tools, Trial

TASK = Task("linear(f32[65x256])", "host", ("avx2", "fma"), "time")
TOOLS = Tools("llvm 22.1", 4)
OTHERS = (Tools("llvm 21.0", 4), Tools("llvm 22.1", 3))


def trial(number: int, value: float | None = 1.0, tools: Tools = TOOLS, task: Task = TASK) -> Trial:
    return Trial(task, tools, "linear", {"tile": number}, value, "" if value is not None else "bad")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "of_a_user" / "tune.sqlite"


def test_what_is_added_is_found(path: Path) -> None:
    """In the order of adding, once, after the file was closed as well."""
    added = [trial(2, 3.5), trial(1, None), trial(3, 0.1)]
    with Database(path) as database:
        assert [database.add(each) for each in added] == [True] * 3
        assert not database.add(trial(2, 9.9)), "it was tried before"
    with Database(path) as database:
        assert database.trials(TASK, TOOLS) == tuple(added) == tuple(database)
        assert database.best(TASK, TOOLS) == added[2]
        assert len(database) == 3


def test_only_alike_trials_are_compared(path: Path) -> None:
    """Another machine, method or spec is another task; what is of this call is found beside it."""
    with Database(path) as database:
        for i, changes in enumerate(
            ({"spec": "x"}, {"target": "a"}, {"features": ("a CPU",)}, {"instrument": "b"})
        ):
            database.add(trial(i, task=attrs.evolve(TASK, **changes)))
        assert database.trials(TASK, TOOLS) == ()
        assert database.best(TASK, TOOLS) is None
        for i, tools in enumerate(OTHERS):
            database.add(trial(i, 5.0 - i, tools))
            database.add(trial(7, None, tools))
        assert database.trials(TASK, TOOLS) == ()
        found = [each.parameters["tile"] for each in database.alike(TASK, TOOLS)]
        assert found == [2, 3, 0, 1], "features, instrument, and both tools; no faults"
        assert len(database.of_target(TASK.target)) == 7


def test_a_longer_measurement_takes_the_place(path: Path) -> None:
    """Of the trial of its way; a shorter one does not, and nothing is added."""
    long, short = (attrs.evolve(trial(1, v), rounds=n) for v, n in ((2.0, 30), (3.0, 9)))
    with Database(path) as database:
        assert not database.refine(long), "there is none"
        database.add(trial(1, 1.0))
        assert database.refine(long)
        assert not database.refine(short)
        assert list(database) == [long]


def test_faults_are_forgotten_by_their_kind(path: Path) -> None:
    """Those of a task and tools that begin so; all else stays."""
    late = Trial(TASK, TOOLS, "linear", {"tile": 1}, None, "was late by 3 s")
    other = [trial(2), trial(3, None), attrs.evolve(late, tools=OTHERS[0])]
    with Database(path) as database:
        for each in (late, *other):
            database.add(each)
        assert database.forget(TASK, TOOLS, ("died", "was late")) == 1
        assert list(database) == other
        assert database.add(late)


def test_who_only_reads_changes_nothing(path: Path) -> None:
    """Records are found, none can be added; a file that is not there is not made."""
    with pytest.raises(CannotWrite, match="cannot be used: unable to open"):
        Database(path, read_only=True)
    assert not path.exists()
    with Database(path) as database:
        database.add(trial(1))
    with Database(path, read_only=True) as database:
        assert len(database) == 1
        with pytest.raises(CannotWrite, match="readonly"):
            database.add(trial(2))


def test_equal_figures_have_one_best(path: Path) -> None:
    """Whatever the order in which they were measured."""
    with Database(path) as database:
        for number in (3, 1, 2):
            database.add(trial(number))
        best = database.best(TASK, TOOLS)
    assert best is not None
    assert best.parameters == {"tile": 1}


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_figures_are_numbers(value: float) -> None:
    """Nothing takes less than no time, or more than any."""
    with pytest.raises(ValueError, match="cannot take"):
        trial(1, value)
    with pytest.raises(ValueError, match="a figure or a fault"):
        Trial(TASK, TOOLS, "linear", {}, 1.0, "wrong")


WRITER = """
import sys
from pathlib import Path
from butterflyc.tuning.database import Database
from butterflyc.tuning.trial import Task, Tools, Trial

path, who, count = sys.argv[1:]
task, tools = Task("s", "host", (), "time"), Tools("t", 1)
with Database(Path(path)) as database:
    for number in range(int(count)):
        database.add(Trial(task, tools, who, {"number": number}, 1.0))
        print(number, flush=True)
"""


@dataclass
class Writer:
    process: subprocess.Popen[str]

    @staticmethod
    def of(path: Path, who: str, count: int) -> Writer:
        command = [sys.executable, "-c", WRITER, str(path), who, str(count)]
        return Writer(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))

    def ended(self) -> list[str]:
        """What it said to have written."""
        out, _ = self.process.communicate(timeout=120)
        return out.split()


def test_tuners_write_together(path: Path) -> None:
    """Two processes, of which one has to make the file, lose no row and damage nothing."""
    writers = [Writer.of(path, who, 200) for who in ("one", "other")]
    assert [len(writer.ended()) for writer in writers] == [200, 200]
    with Database(path) as database:
        assert len(database) == 400


def test_a_killed_tuner_loses_nothing(path: Path) -> None:
    """All that it said to have finished is there, and the next one goes on."""
    writer = Writer.of(path, "one", 10**6)
    assert writer.process.stdout is not None
    for _ in range(50):
        writer.process.stdout.readline()
    time.sleep(0.05)
    writer.process.send_signal(signal.SIGKILL)
    said = 50 + len(writer.ended())
    with Database(path) as database:
        numbers = [each.parameters["number"] for each in database]
        assert len(numbers) >= said
        assert numbers == list(range(len(numbers)))
        assert database.add(trial(1))


@pytest.mark.parametrize("content", [b"x" * 4096, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_kept(path: Path, content: bytes) -> None:
    """It is told what to do, and not a byte is changed."""
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(Damaged, match="no database of tuning records") as error:
        Database(path)
    assert "BUTTERFLYC_TUNE_DB" in str(error.value)
    assert path.read_bytes() == content


def test_a_damaged_page_is_found(path: Path) -> None:
    """Bytes that were overwritten in the middle are found before anything is believed."""
    with Database(path) as database:
        for number in range(500):
            database.add(trial(number))
    content = bytearray(path.read_bytes())
    content[8192:16384] = b"\xa5" * 8192
    path.write_bytes(content)
    with pytest.raises(Damaged):
        Database(path)
    assert path.read_bytes() == bytes(content)


def test_rows_that_are_no_trials_are_told(path: Path) -> None:
    """Parameters that are no JSON, or a method that is not known."""
    Database(path).close()
    for column, value in (("parameters", "{"), ("method", "luck"), ("value", -1.0)):
        row: dict[str, Any] = {
            "spec": "s", "target": "t", "features": "[]", "method": "time", "instrument": "",
            "toolchain": "c", "epoch": 1, "kernel": "k", "parameters": "{}", "value": 1.0,
            "fault": "", "rounds": 1,
        } | {column: value}  # fmt: skip
        with sqlite3.connect(path) as connection:
            connection.execute("DELETE FROM trials")
            marks = ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO trials VALUES ({marks})", tuple(row.values()))
        connection.close()
        with Database(path) as database, pytest.raises(Damaged, match="no trial"):
            list(database)


def test_a_later_schema_is_told(path: Path) -> None:
    """A file of a later butterflyc is left to it."""
    Database(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    with pytest.raises(Incompatible, match=f"schema {SCHEMA + 1}"):
        Database(path)


def test_where_nothing_can_be_written(path: Path) -> None:
    """A folder of that name, and another that writes for too long."""
    path.mkdir(parents=True)
    with pytest.raises(CannotWrite, match="cannot be used"):
        Database(path)
    other = path.with_name("other.sqlite")
    with Database(other, patience=0.01) as database:
        connection = sqlite3.connect(other, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(CannotWrite, match="locked"):
            database.add(trial(1))
        connection.close()
        assert database.add(trial(1))


words = st.text(st.characters(codec="utf-8", exclude_characters=" \n\r\t"), min_size=1, max_size=9)
trials = st.builds(
    Trial,
    st.builds(
        Task, words, words, st.lists(st.sampled_from("abc"), unique=True).map(tuple),
        st.sampled_from(tuple(METHODS)),
    ),
    st.builds(Tools, words, st.integers(0, 9)),
    words,
    st.dictionaries(words, st.integers(-(2**31), 2**31), max_size=3),
    st.floats(0, 1e9),
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(found=st.lists(trials, max_size=8))
def test_lines_hold_all(found: list[Trial], tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is exported is imported whole, once, and exported again as the same bytes."""
    first, second = (tmp_path_factory.mktemp("db") / name for name in ("a", "b"))
    with Database(first) as database, Database(second) as other:
        count = sum(map(database.add, found))
        lines = to_lines(database)
        assert import_into(other, from_lines(lines, "x.jsonl")) == count == len(other)
        assert import_into(other, from_lines(lines, "x.jsonl")) == 0
        assert to_lines(other) == lines


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", 1),
        (b"\xff\xfe", 1),
        (b'{"schema": "butterflyc.trials/2"}\n', 1),
        (b'{"schema": "butterflyc.trials/1"}\n{}\n', 2),
        (b'{"schema": "butterflyc.trials/1"}\n\n[1]\n', 3),
        (to_lines([trial(1)]).replace(b'"value": 1.0', b'"value": -1.0'), 2),
        (to_lines([trial(1)]).replace(b'"value"', b'"price"'), 2),
        (to_lines([trial(1)])[:-30], 2),
    ],
)
def test_lines_that_are_no_trials_are_told(content: bytes, line: int) -> None:
    """With the file and the line."""
    with pytest.raises(Damaged, match=rf"line {line} of x\.jsonl"):
        from_lines(content, "x.jsonl")
