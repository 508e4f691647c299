"""`demo` goes from a checkpoint to a verified library, and says how the two compare."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from butterflyc import demo as library
from butterflyc import program
from butterflyc.cli.app import run
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.checkpoint import save_checkpoint
from butterflyc.models.data import ImageSet
from butterflyc.models.vit import ViT, ViTConfig

TEST_IMAGES = 5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained model, with images of noise."""
    torch.manual_seed(0)
    layer = ButterflyConfig(d_model=16, d_ff=32, experts=4, top_k=2, angle_std=1.0)
    config = ViTConfig(
        image=8, channels=1, patch=4, classes=10, d_model=16, heads=2, layers=1, mlp=layer
    )
    random = np.random.default_rng(0)

    def images(count: int) -> ImageSet:
        pixels = random.integers(0, 17, (count, 1, 8, 8), dtype=np.uint8)
        return ImageSet(pixels, random.integers(0, 10, count), 16)

    path = tmp_path_factory.mktemp("demo") / "small.safetensors"
    parts = {"calibration": images(3), "test": images(TEST_IMAGES)}
    save_checkpoint(path, ViT(config), images=parts)
    return path


def test_demo_compiles_verifies_and_times(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every test image is compared, and what is written runs."""
    folder = tmp_path / "new" / "folder"
    assert run(["demo", "--checkpoint", str(checkpoint), "-o", str(folder)]) == 0
    text = capsys.readouterr().out
    for part in ("4 of 4 found", f"of {TEST_IMAGES} test images", "times as fast", "PASS"):
        assert part in text
    assert f"butterflyc inspect {folder / 'host.bfly'}" in text
    loaded = program.load(folder)
    image = np.zeros((1, 1, 8, 8), np.float32)
    assert loaded.run(image)[0].shape == (1, 10)


def test_demo_as_json(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same as one document, with the verification inside."""
    line = ["demo", "--checkpoint", str(checkpoint), "-o", str(tmp_path), "-m", "a8", "--json"]
    assert run(line) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "butterflyc.demo/1"
    assert document["mode"] == "a8"
    assert document["verification"]["pass"]
    assert document["verification"]["samples"] == TEST_IMAGES
    assert document["times_as_fast"] > 0


def test_failed_verification_ends_with_5(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A result beyond its limit is shown, and the exit status says so."""
    check = library.check
    monkeypatch.setattr(library, "check", lambda *a, **k: replace(check(*a, **k), passed=False))
    assert run(["demo", "--checkpoint", str(checkpoint), "-o", str(tmp_path)]) == 5
    assert "FAIL" in capsys.readouterr().out


def test_demo_without_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that is not there is a usage error."""
    line = ["demo", "--checkpoint", str(tmp_path / "none.safetensors"), "-o", str(tmp_path)]
    assert run(line) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_training_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--train` resumes if the folder holds a training that was begun."""
    seen = []

    def train(*_: object, resume: bool, **__: object) -> Path:
        seen.append(resume)
        return tmp_path / "digits.safetensors"

    monkeypatch.setattr("butterflyc.models.train.train", train)
    assert library.train_afresh(tmp_path) == tmp_path / "digits.safetensors"
    (tmp_path / "digits.state").write_bytes(b"")
    library.train_afresh(tmp_path)
    assert seen == [False, True]


@pytest.mark.slow
def test_demo_of_the_shipped_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`butterflyc demo` as a newcomer runs it: every expert found, every test image right."""
    assert run(["demo", "-o", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = document["verification"]
    assert document["census"]["found"] == document["census"]["choosable"] == 32
    assert found["samples"] == 360
    assert found["top1_agreement"] == 1.0
    assert found["accuracy"] == found["model_accuracy"] >= 0.96
