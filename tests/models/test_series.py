"""The series of models: trained once, read again, and shown by kind."""

from __future__ import annotations

import io
import json
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from butterflyc.compiler.errors import UsageError
from butterflyc.models import series
from butterflyc.models.checkpoint import read_checkpoint, save_checkpoint
from butterflyc.models.recipes import COMPARED, cifar100_recipe
from butterflyc.models.text import TextSplit

from .test_data import write_cifar
from .test_train import halves
from .test_train import recipe as image_recipe
from .test_train_text import SENTENCE, recipe

RUNS = [("butterfly", 0), ("butterfly", 1), ("static", 0)]
DATA = TextSplit(SENTENCE, SENTENCE[:201])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind is the small model of the tests, on one sentence or on a few images."""
    monkeypatch.setattr(series, "text_recipe", lambda kind: recipe())
    monkeypatch.setattr(series, "library_text", lambda folder: DATA)
    monkeypatch.setattr(series, "digits_recipe", lambda kind: image_recipe())
    monkeypatch.setattr(series, "digits", lambda: halves(16))


def quiet() -> Console:
    """A console that keeps what is printed."""
    return Console(file=io.StringIO(), width=120)


def train(folder: Path, data: TextSplit = DATA, runs: list[series.Run] = RUNS) -> list[str]:
    """Train those runs of the series of that text; the lines that were printed."""
    console = quiet()
    series.train_series(series.text_series(data), folder, runs=runs, console=console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_what_is_trained_is_not_trained_again(tmp_path: Path) -> None:
    """A second call reads the checkpoints of the first, and both give the same outcomes."""
    texts = series.text_series(DATA)
    first = series.train_series(texts, tmp_path, runs=RUNS, console=quiet())
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert sorted(path.stem for path in times) == [
        "text-butterfly",
        "text-butterfly-seed1",
        "text-static",
    ]
    assert train(tmp_path) == []
    assert series.train_series(texts, tmp_path, runs=RUNS, console=quiet()) == first
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert [(row.kind, row.seed) for row in first] == RUNS
    bits = [row.figures["bits_per_byte"] for row in first]
    assert bits[0] != bits[1]
    assert json.loads((tmp_path / "text.json").read_text())[1]["seed"] == 1
    shown = quiet()
    shown.print(series.table(texts, first))
    lines = shown.file.getvalue().splitlines()  # type: ignore[attr-defined]
    mean, deviation = statistics.fmean(bits[:2]), statistics.stdev(bits[:2])
    row = next(line for line in lines if "butterfly" in line)
    assert f"{mean:.4f}" in row
    assert f"{deviation:.4f}" in row


def test_outcomes_hold_the_training_curve(tmp_path: Path) -> None:
    """A point an epoch with its mean loss; all but the last are measured on held-out text, too."""
    (outcome,) = series.train_series(
        series.text_series(DATA), tmp_path, runs=RUNS[:1], console=quiet()
    )
    assert [point["epoch"] for point in outcome.curve] == [1, 2]
    assert [set(point) for point in outcome.curve] == [
        {"epoch", "loss", "bits_per_byte"},
        {"epoch", "loss"},
    ]
    assert {"bytes_seen", "active_parameters", "ngram_bits_per_byte"} <= set(outcome.figures)


def test_a_checkpoint_of_another_text_is_refused(tmp_path: Path) -> None:
    """What was trained on another text is not taken for the run that is asked for."""
    train(tmp_path, runs=RUNS[:1])
    other = TextSplit(SENTENCE[:-1], DATA.held_out)
    with pytest.raises(UsageError, match="on another text") as caught:
        train(tmp_path, other, RUNS[:1])
    assert caught.value.where == str(tmp_path / "text-butterfly.safetensors")


def test_what_is_compared_has_three_seeds() -> None:
    """Butterfly, StandardMoE and dense have three seeds each, every ablation of text has one."""
    counts = Counter(kind for kind, _ in series.text_series(DATA).runs)
    assert {kind for kind, count in counts.items() if count == 3} == set(COMPARED)
    assert set(counts.values()) == {1, 3}
    counts = Counter(kind for kind, _ in series.digits_series().runs)
    assert set(counts) > set(COMPARED)
    assert {kind for kind, count in counts.items() if count == 1} == {"papers-start"}
    assert set(counts.values()) == {1, 3}


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One kind and one seed are trained and shown; errors end with their status."""
    command = ["text", "-o", str(tmp_path), "--kind", "static", "--seed", "0"]
    assert series.main(command) == 0
    out = capsys.readouterr().out
    assert "static" in out
    assert "bits per byte" in out
    (tmp_path / "text-static.safetensors").write_bytes(b"")
    assert series.main(command) == 6
    assert "error[" in capsys.readouterr().err
    assert series.main(["digits", "-o", str(tmp_path), "--kind", "static"]) == 2
    assert "kind of the series 'digits' 'static'" in capsys.readouterr().err


def test_a_checkpoint_without_its_curve_is_refused(tmp_path: Path) -> None:
    """As those are that an earlier version trained: the shipped model of digits is one."""
    digits = series.digits_series()
    path = tmp_path / "digits-dense.safetensors"
    series.train_series(digits, tmp_path, runs=[("dense", 0)], console=quiet())
    held = read_checkpoint(path)
    notes = {name: value for name, value in held.notes.items() if name != "curve"}
    save_checkpoint(path, held.model(), notes=notes)
    with pytest.raises(UsageError, match="kept no training curve"):
        series.train_series(digits, tmp_path, runs=[("dense", 0)], console=quiet())


def test_a_series_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images are trained in the same way, and judged by what is right of the test images."""
    assert series.main(["digits", "-o", str(tmp_path), "--kind", "dense", "--seed", "1"]) == 0
    assert "accuracy" in capsys.readouterr().out
    (outcome,) = json.loads((tmp_path / "digits.json").read_text())
    assert (outcome["kind"], outcome["seed"]) == ("dense", 1)
    assert 0 <= outcome["figures"]["accuracy"] <= 100


def test_the_papers_model_trains_on_cifar100(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its own size, for one epoch of two batches of noise, with Table 1's parameters."""
    random, count = np.random.default_rng(1), 32
    images = tmp_path / "cifar-100-python"
    images.mkdir()
    write_cifar(
        images,
        data=random.integers(0, 256, (count, 3072), dtype=np.uint8),
        fine_labels=list(range(count)),
        coarse_labels=[0] * count,
        filenames=[b"a.png"] * count,
    )
    monkeypatch.setattr(
        series, "cifar100_recipe", lambda mlp: replace(cifar100_recipe(mlp, epochs=1), batch=16)
    )
    noise = series.cifar100_series(images)
    assert noise.runs == [("butterfly", 0), ("standard", 0), ("dense", 0)]
    runs = noise.runs[:1]
    (found,) = series.train_series(noise, tmp_path, runs=runs, console=quiet())
    assert found.parameters == 5_661_028
    assert np.isfinite(found.curve[0]["loss"])
