"""``tune`` from the command line: what it refuses, what it shows, what it draws."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from butterflyc.cli._tuning import kernel_line, show_report, tuning_text
from butterflyc.cli.app import run
from butterflyc.compiler.errors import CannotWrite, ToolMissing, UsageError
from butterflyc.tuning.database import Database
from butterflyc.tuning.measure import Reading
from butterflyc.tuning.plot import write_plot
from butterflyc.tuning.report import Report
from butterflyc.tuning.tuner import CallProgress

from ..tuning.fake import trial_of
from ..tuning.small import call_of, task_for

MODEL = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Linear(32, 16).eval(), (torch.rand(4, 32),)

def relu():
    return nn.ReLU(), (torch.rand(4),)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with m.py in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(MODEL)
    return tmp_path


def progress_of(
    name: str, method: str, values: list[float | None], left_out: int = 0, **state: Any
) -> CallProgress:
    """A call whose ways take ``values``, the default one first."""
    call = call_of(name, len(values) + 1, count=2, left_out=left_out)
    task = task_for(call, method)
    trials = [trial_of(call, tile, value, task=task) for tile, value in enumerate(values)]
    return CallProgress(call, task, trials, **state)


def report(method: str = "time", interrupted: bool = False) -> Report:
    """Of two calls, of which the first became better by a half; the other has a fault."""
    unit = 1e-6 if method == "time" else 1000.0
    confirmed = Reading(2.0 * unit, 0.02) if method == "time" else None
    found = [
        progress_of("a", method, [3 * unit, 4 * unit, 2 * unit], 7, confirmed=confirmed),
        progress_of("b", method, [5 * unit, None], earlier=1, hints=3),
    ]
    instrument = "" if method == "time" else "gcc 12.2"
    return Report("host", method, instrument, Path("t.sqlite"), found, 12.4, interrupted)


def run_line(line: str) -> int:
    return run(line.split())


def squeezed(line: str) -> str:
    """The cells of a row, whatever its columns are as wide as."""
    return " ".join(line.split())


def shown(capsys: pytest.CaptureFixture[str], *given: Any, **options: Any) -> list[str]:
    show_report(report(*given, **options))
    return capsys.readouterr().out.splitlines()


def test_a_table_of_times(capsys: pytest.CaptureFixture[str]) -> None:
    """A line a kernel, with gain and spread, and what it all comes to."""
    header, first, second, *rest = shown(capsys)
    assert squeezed(header) == "kernel calls default best gain trials best way"
    assert squeezed(first) == "linear 4x32 -> 4x16 2 3 us 2 us x1.50 ±1.0% 3/4 k tile=2"
    assert squeezed(second) == "linear 4x32 -> 4x16 2 5 us 5 us x1.00 2/3 k tile=0"
    assert rest == [
        "all of them: x1.143 by time",
        "4 trials in 12 s, 1 were there: t.sqlite",
        "disqualified: 1 WrongResult",
        "not tried, since a model of costs has no hope for them: 7",
        "records of other tools, machines or methods: 3, taken as hints alone",
        "next: butterflyc compile MODEL -o OUT",
    ]


def test_a_table_of_instructions(capsys: pytest.CaptureFixture[str]) -> None:
    """Counts are whole numbers, and named with what has counted."""
    _, first, _, summary, *_, last = shown(capsys, "instructions", interrupted=True)
    assert squeezed(first) == "linear 4x32 -> 4x16 2 3,000 2,000 x1.50 3/4 k tile=2"
    assert summary == "all of them: x1.143 by instructions, gcc 12.2"
    assert last == "interrupted; the same command goes on"


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.0, "2 s"), (0.0123, "12.3 ms"), (4.56e-4, "456 us"), (7e-8, "70 ns"), (0.0, "0 ns")],
)
def test_times_have_units(value: float, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The one in which they are numbers that can be read."""
    found = [progress_of("a", "time", [value])]
    show_report(attrs.evolve(report(), found=found))
    assert f"  {text}  " in capsys.readouterr().out


def test_tables_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """No kernel, none that was measured, or a default way that failed, are said so."""
    show_report(attrs.evolve(report(), found=[]))
    assert "no kernel of this model" in capsys.readouterr().out
    found = [progress_of("a", "time", []), progress_of("b", "time", [None])]
    show_report(attrs.evolve(report(), found=found))
    text = capsys.readouterr().out
    assert "measured: time" in text
    assert "disqualified: 1 WrongResult" in text


def test_lines_while_it_measures() -> None:
    """What was tried just now, and how far its call is."""
    good, bad = report().found
    assert kernel_line(good.trials[2], good) == (
        "linear 4x32 -> 4x16: 3 of 4 ways, 2 us  best x1.50"
    )
    assert kernel_line(bad.trials[1], bad).endswith("2 of 3 ways, WrongResult  best x1.00")


def test_what_compile_says() -> None:
    """How many kernels were tuned, and how many records left aside."""
    assert tuning_text({"tuned": 5, "kernels": 7, "ignored": {}}) == "5 of 7 kernels"
    said = {"tuned": 0, "kernels": 7, "ignored": {"made by other tools": 4}}
    assert tuning_text(said) == "0 of 7 kernels (records left aside: 4 made by other tools)"


def test_nothing_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No model and no records, a budget that is none, nothing that measures, options beside an
    artefact's own."""
    for line, status in (
        ("tune", 2),
        ("tune m.py:make --budget soon", 2),
        ("tune m.py:make -t c99", 3),
    ):
        assert run_line(line) == status
        assert "error" in capsys.readouterr().err
    assert run_line("tune no_such_model.py:make --plot p.pdf") == 2
    assert "p.pdf is no picture" in capsys.readouterr().err, "before anything else is done"
    assert run_line("compile m.py:make -o m.bfly") == 0
    assert run_line("tune m.bfly -t host") == 2
    assert "was compiled for host in mode f32: target" in capsys.readouterr().err
    assert run_line("compile m.py:make --records r --untuned -o n.bfly") == 2
    assert not (folder / "n.bfly").exists()


def test_records_go_from_one_file_to_another(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a model; what comes out is what went in, and nothing comes in twice."""
    trials = [trial for each in report("instructions").found for trial in each.trials]
    with Database(folder / "a.sqlite") as database:
        assert all(map(database.add, trials))
    assert run_line("tune --database a.sqlite --export a.jsonl") == 0
    for _ in range(2):
        assert run_line("tune --database b.sqlite --import a.jsonl --export b.jsonl") == 0
    assert (folder / "a.jsonl").read_bytes() == (folder / "b.jsonl").read_bytes()
    err = capsys.readouterr().err
    assert "5 of 5 records are new in b.sqlite" in err
    assert "0 of 5 records are new in b.sqlite" in err
    assert run_line("tune --import none.jsonl") == 2


@pytest.mark.slow
def test_a_model_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The document has all of the report; its records are exported; compile takes the best."""
    words = "tune m.py:make --budget 2 --database t.sqlite --export t.jsonl --plot t.svg --json"
    assert run_line(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["schema"] == "butterflyc.tune/1"
    assert set(said) == {"schema", *report().as_dict()}
    (kernel,) = said["kernels"]
    assert set(kernel) == set(report().as_dict()["kernels"][0])
    assert (said["new_trials"], kernel["trials"], len(kernel["best_so_far"])) == (2, 2, 2)
    assert (said["method"], said["unit"], said["interrupted"]) == ("time", "s", False)
    assert len((folder / "t.jsonl").read_text().splitlines()) == 3
    assert (folder / "t.svg").read_text().startswith("<?xml")
    assert run_line("compile m.py:make --records t.jsonl -o m.bfly") == 0
    assert "tuned    1 of 1 kernels\n" in capsys.readouterr().out


def test_reports_are_plain_data() -> None:
    """Of each kernel what it is, what it took, and what was wrong."""
    said = report().as_dict()
    assert json.loads(json.dumps(said)) == said
    assert said["gain"] == pytest.approx(16 / 14)
    first, second = said["kernels"]
    assert first["confirmed"] == {"value": 2e-6, "spread": 0.02}
    assert first["best"] == {
        "kernel": "k", "parameters": {"tile": 2}, "value": 2e-6, "fault": ""
    }  # fmt: skip
    assert second["faults"] == {"WrongResult": 1}
    assert (said["new_trials"], second["earlier"], second["hints"]) == (4, 1, 3)


def test_pictures_are_the_same_twice(tmp_path: Path) -> None:
    """Of the same report the same bytes; each kernel is named in it."""
    paths = [tmp_path / f"{i}.svg" for i in range(2)]
    for path in paths:
        write_plot(report(), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert "kernels for host" in paths[0].read_text()
    write_plot(report(), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    write_plot(attrs.evolve(report(), found=[]), tmp_path / "none.svg")


def test_pictures_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another suffix, a folder that is not there, and no matplotlib are told."""
    with pytest.raises(UsageError, match="is no picture"):
        write_plot(report(), tmp_path / "p.pdf")
    with pytest.raises(CannotWrite):
        write_plot(report(), tmp_path / "none" / "p.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ToolMissing, match="matplotlib"):
        write_plot(report(), tmp_path / "p.svg")
