"""``butterflyc paper``: the folder that it writes, and what it refuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from butterflyc.cli.app import run
from butterflyc.compiler.errors import BadInput, UsageError
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.checkpoint import DIGITS, save_checkpoint
from butterflyc.models.data import ImageSet
from butterflyc.models.language import LanguageConfig, LanguageModel
from butterflyc.models.standard import StandardConfig
from butterflyc.models.vit import MlpConfig, ViT, ViTConfig
from butterflyc.paper.markdown import markdown, number
from butterflyc.paper.report import Report, build, check_folder, write
from butterflyc.paper.rows import Row, Table

ROW = {"key", "what", "unit", "paper", "formula", "shown", "why", "measured"}
TABLE = {"key", "title", "note", "rows", "picture"}
PICTURES = {"memory.png", "devices.png", "energy.png", "similarity.png"}
CURVES, FILES = {"curves.png"}, {"README.md", "paper.json"}


def save(path: Path, mlp: MlpConfig, with_images: bool = True) -> Path:
    """A small untrained model, with two test images of noise."""
    torch.manual_seed(0)
    sizes = {"image": 4, "channels": 1, "patch": 2, "classes": 3, "heads": 2, "layers": 2}
    pixels = np.random.default_rng(0).integers(0, 17, (2, 1, 4, 4), dtype=np.uint8)
    images = {"test": ImageSet(pixels, np.zeros(2, np.int64), 16)} if with_images else {}
    save_checkpoint(path, ViT(ViTConfig(**sizes, d_model=16, mlp=mlp)), images=images)
    return path


def save_text(path: Path, mlp: MlpConfig) -> Path:
    """A small untrained language model, with four windows of noise."""
    torch.manual_seed(0)
    model = LanguageModel(LanguageConfig(context=8, d_model=16, heads=2, layers=2, mlp=mlp))
    windows = np.random.default_rng(0).integers(0, 256, (4, 8), dtype=np.uint8)
    save_checkpoint(path, model, text={"calibration": windows})
    return path


BUTTERFLY = ButterflyConfig(d_model=16, d_ff=32, experts=3, angle_std=1.0)
STANDARD = StandardConfig(d_model=16, d_ff=32, experts=3)
ELSEWHERE = {"ffn.down-ternary": 491.5}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small ButterflyViT with images, and a StandardMoE ViT without."""
    folder = tmp_path_factory.mktemp("models")
    return (
        save(folder / "small.safetensors", BUTTERFLY),
        save(folder / "standard.safetensors", STANDARD, with_images=False),
    )


@pytest.fixture(scope="module")
def made(models: tuple[Path, Path]) -> Report:
    """A report of the small models, with one figure measured elsewhere."""
    small, standard = models
    return build(small, standard=standard, measured=ELSEWHERE)


def rows_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for table in document["tables"] for row in table["rows"]}


def test_folder_is_whole(made: Report, tmp_path: Path) -> None:
    """README, JSON and every picture are written; the README shows each picture once."""
    paths = write(made, tmp_path / "new" / "paper")
    assert {path.name for path in paths} == {"README.md", "paper.json", *PICTURES}
    assert sorted(paths) == sorted((tmp_path / "new" / "paper").iterdir())
    text = paths[0].read_text()
    assert sorted(re.findall(r"!\[.*\]\((.*)\)", text)) == sorted(PICTURES)
    for table in made.tables:
        assert text.count(f"\n## {table.title}\n") == 1
    assert all(line.count(" | ") == 5 for line in text.splitlines() if line.startswith("| "))


def test_json_is_one_schema(made: Report) -> None:
    """Every table and row has the same entries, each of its kind."""
    document = json.loads(made.files()["paper.json"])
    assert document["schema"] == "butterflyc.paper/1"
    assert document.keys() == {"schema", "model", "tables"}
    for table in document["tables"]:
        assert table.keys() == TABLE
        for row in table["rows"]:
            assert row.keys() == ROW
            assert all(isinstance(row[name], str) for name in ("key", "what", "unit", "why"))
            assert all(isinstance(row[name], str | None) for name in ("paper", "shown"))
            assert all(
                isinstance(row[name], int | float | None) for name in ("formula", "measured")
            )
    assert len(rows_of(document)) == sum(len(table["rows"]) for table in document["tables"])


def test_what_is_measured_stands_in_its_row(made: Report) -> None:
    """Parameters of our modules, cosines, activations, and what was measured elsewhere."""
    rows = rows_of(made.as_dict())
    assert rows["table1.butterfly.parameters"]["measured"] == 5_661_028
    assert rows["table1.standard.parameters"]["measured"] == 31_351_140
    assert rows["table1.dense.parameters"]["measured"] == 5_583_972
    assert rows["ffn.down-ternary"]["measured"] == 491.5
    assert rows["ffn.down-f32"]["measured"] is None
    assert rows["figure5.small-the-papers-start.mean"]["measured"] > 0.99
    assert abs(rows["figure5.standardmoe.mean"]["measured"]) < 0.5
    assert rows["outliers.kurtosis.after"]["measured"] > 1
    assert "d = 16, F = 32, 2 layers of 3 experts" in made.model


def test_reports_are_the_same_whatever_the_seed(made: Report, models: tuple[Path, Path]) -> None:
    """Two reports of the same models are the same files, and torch keeps the caller's seed."""
    torch.manual_seed(7)
    again = build(models[0], standard=models[1], measured=ELSEWHERE)
    assert again.files() == made.files()
    assert torch.initial_seed() == 7


def test_command_writes_and_tells(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command names its tables and the README, and each step on stderr."""
    folder = tmp_path / "out"
    line = ["paper", "-o", str(folder), "--checkpoint", str(models[0]), "--quick"]
    assert run(line) == 0
    told = capsys.readouterr()
    assert f"wrote {folder / 'README.md'}" in told.out
    assert "Table 2 of ButterflyViT" in told.out
    assert "compare experts" in told.err
    assert {path.name for path in folder.iterdir()} == {*PICTURES, *FILES, *CURVES}


def test_command_overwrites_by_force_alone(
    made: Report,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder that holds something is refused; by --force its other files stay."""
    monkeypatch.setattr("butterflyc.paper.report.build", lambda *_, **__: made)
    (tmp_path / "mine.txt").write_text("mine")
    line = ["paper", "-o", str(tmp_path), "--json", "--quick"]
    assert run(line) == 2
    assert "is not empty" in json.loads(capsys.readouterr().out)["error"]["what"]
    assert run([*line, "--force"]) == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "paper.json").read_text())
    assert printed["tables"] == written["tables"]
    assert printed["schema"] == written["schema"]
    assert len(printed["files"]) == 6
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_models_of_ones_own_go_with_a_checkpoint(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A StandardMoE alone would stand beside a model that it has nothing to do with."""
    assert run(["paper", "-o", str(tmp_path / "a"), "--standard", str(models[1])]) == 2
    assert "go with --checkpoint" in capsys.readouterr().err


def test_refusals(models: tuple[Path, Path], tmp_path: Path) -> None:
    """A file as folder, models of another kind, and no images are told."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        check_folder(tmp_path / "file", force=True)
    bare = save(tmp_path / "bare.safetensors", BUTTERFLY, with_images=False)
    with pytest.raises(BadInput, match="not of a ButterflyViT"):
        build(models[1])
    with pytest.raises(BadInput, match="not of a StandardMoE"):
        build(models[0], standard=bare)
    with pytest.raises(BadInput, match="no test images"):
        build(bare)


def test_a_language_model_is_measured_too(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Its experts stand in Figure 5, its activations in a table of outliers of its own."""
    text = save_text(tmp_path / "text.safetensors", BUTTERFLY)
    rows = rows_of(build(models[0], text=text).as_dict())
    assert abs(rows["figure5.text-trained.mean"]["measured"]) < 0.9
    assert rows["outliers-text.kurtosis.after"]["measured"] > 1
    dense = save_text(tmp_path / "dense.safetensors", STANDARD)
    with pytest.raises(BadInput, match="not of a Butterfly language model"):
        build(models[0], text=dense)


def test_no_matplotlib_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with 7, and makes no folder, though it would compile layers."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["paper", "-o", str(tmp_path / "out")]) == 7
    told = capsys.readouterr().err
    assert "butterflyc[train]" in told
    assert "compare experts" not in told
    assert not (tmp_path / "out").exists()


def test_markdown_cells() -> None:
    """Bars are escaped, what is not there is a dash, whole numbers are whole."""
    table = Table("t", "T", "Note.", (Row("t.a", "a|b", "MB", None, 1.0, "1", "Why.", 2.0),))
    assert "| a\\|b | MB | — | 1 | 2 | Why. |" in markdown([table], "nothing")
    assert number(1234567.0) == "1,234,567"
    assert number(0.0123456) == "0.01235"


@pytest.mark.slow
def test_shipped_model() -> None:
    """Of the digits model: experts near right angles, and activations without outliers."""
    made = build(DIGITS)
    rows = rows_of(made.as_dict())
    assert rows["figure5.digits-trained.mean"]["measured"] == pytest.approx(0.0093, abs=0.0005)
    assert abs(rows["figure5.digits-trained.largest"]["measured"]) < 0.05
    for side in ("before", "after"):
        assert 2.5 < rows[f"outliers.kurtosis.{side}"]["measured"] < 3.2
        assert 0.5 < rows[f"outliers.per_token.{side}"]["measured"] < 0.7
