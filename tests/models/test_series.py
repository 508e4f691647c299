"""The series of language models: trained once, read again, and shown by kind."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from butterflyc.compiler.errors import UsageError
from butterflyc.models import series
from butterflyc.models.text import TextSplit

from .test_train_text import SENTENCE, recipe

RUNS = [("butterfly", 0), ("butterfly", 1), ("static", 0)]
DATA = TextSplit(SENTENCE, SENTENCE[:201])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind is the small model of the tests, on one sentence."""
    monkeypatch.setattr(series, "text_recipe", lambda kind: recipe())
    monkeypatch.setattr(series, "library_text", lambda folder: DATA)


def quiet() -> Console:
    """A console that keeps what is printed."""
    return Console(file=io.StringIO(), width=120)


def test_what_is_trained_is_not_trained_again(tmp_path: Path) -> None:
    """A second call reads the checkpoints of the first, and both give the same outcomes."""
    console = quiet()
    first = series.train_series(tmp_path, DATA, runs=RUNS, console=console)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert sorted(path.stem for path in times) == [
        "text-butterfly",
        "text-butterfly-seed1",
        "text-static",
    ]
    assert series.train_series(tmp_path, DATA, runs=RUNS, console=console) == first
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert [(row.kind, row.seed) for row in first] == RUNS
    assert first[0].bits_per_byte != first[1].bits_per_byte
    assert json.loads((tmp_path / "text.json").read_text())[1]["seed"] == 1
    shown = quiet()
    shown.print(series.table(first))
    lines = shown.file.getvalue().splitlines()  # type: ignore[attr-defined]
    mean = (first[0].bits_per_byte + first[1].bits_per_byte) / 2
    assert any("butterfly" in line and "2" in line and f"{mean:.4f}" in line for line in lines)


def test_a_checkpoint_of_another_text_is_refused(tmp_path: Path) -> None:
    """What was trained on another text is not taken for the run that is asked for."""
    series.train_series(tmp_path, DATA, runs=RUNS[:1], console=quiet())
    other = TextSplit(SENTENCE[:-1], DATA.held_out)
    with pytest.raises(UsageError, match="on another text") as caught:
        series.train_series(tmp_path, other, runs=RUNS[:1], console=quiet())
    assert caught.value.where == str(tmp_path / "text-butterfly.safetensors")


def test_what_is_compared_has_three_seeds() -> None:
    """Butterfly, StandardMoE and dense have three seeds each, every ablation has one."""
    counts = Counter(kind for kind, _ in series.RUNS)
    assert {kind for kind, count in counts.items() if count == 3} == set(series.COMPARED)
    assert set(counts.values()) == {1, 3}


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One kind and one seed are trained and shown; errors end with their status."""
    command = ["-o", str(tmp_path), "--kind", "static", "--seed", "0"]
    assert series.main(command) == 0
    out = capsys.readouterr().out
    assert "static" in out
    assert "n-gram of order 3" in out
    (tmp_path / "text-static.safetensors").write_bytes(b"")
    assert series.main(command) == 6
    assert "error[" in capsys.readouterr().err
