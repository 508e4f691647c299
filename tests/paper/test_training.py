"""``butterflyc paper --train``: everything afresh, in the folder of the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from butterflyc.cli.app import run
from butterflyc.models.series import Outcome, Series
from butterflyc.models.text import TextSplit
from butterflyc.paper import training
from butterflyc.paper.forms import Accuracy
from butterflyc.paper.trained import Trained

from ..models.test_train_text import SENTENCE

CALLS = list[tuple[str, Path]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> CALLS:
    """What is trained and compiled, by name and folder; nothing of it in truth."""
    made: CALLS = []

    def train(series: Series, folder: Path, **_: object) -> list[Outcome]:
        made.append((series.data, folder))
        return [Outcome("dense", 0, 1, {series.figure: 1.0}, [])]

    def compiled(folder: Path, _: object) -> list[Accuracy]:
        made.append(("forms", folder))
        return [Accuracy("butterfly", 0, "f32", None, 1.0)]

    monkeypatch.setattr(training, "train_series", train)
    monkeypatch.setattr(training, "accuracies", compiled)
    monkeypatch.setattr(training, "library_text", lambda: TextSplit(SENTENCE, SENTENCE))
    monkeypatch.setattr(
        training, "cifar100_series", lambda folder: Series("cifar100", None, [], "accuracy")
    )
    return made


def test_all_series_and_forms(calls: CALLS, tmp_path: Path) -> None:
    """Digits, their forms, text; CIFAR-100 only where it is given."""
    trained = training.train_all(tmp_path)
    assert [name for name, _ in calls] == ["digits", "forms", "text"]
    assert (len(trained.digits), len(trained.forms), len(trained.text)) == (1, 1, 1)
    assert trained.cifar100 == []
    assert training.train_all(tmp_path, tmp_path).cifar100[0].kind == "dense"
    assert {folder for _, folder in calls} == {tmp_path}


def test_command_trains_into_runs(
    calls: CALLS,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``--train`` puts models into ``runs``; ``--data`` is refused without it."""
    seen: list[Trained] = []

    def build(*_: object, trained: Trained, **__: object) -> None:
        seen.append(trained)
        raise KeyboardInterrupt

    monkeypatch.setattr("butterflyc.paper.report.build", build)
    out = tmp_path / "out"
    assert run(["paper", "-o", str(out), "--data", str(tmp_path)]) == 2
    assert "--data goes with --train" in capsys.readouterr().err
    run(["paper", "-o", str(out), "--quick", "--train"])
    assert {folder for _, folder in calls} == {out / "runs"}
    assert len(seen[0].digits) == 1
