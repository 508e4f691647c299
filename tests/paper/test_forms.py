"""Accuracy of compiled forms: measured once each, resumed, and of the images that it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.checkpoint import read_checkpoint
from butterflyc.paper import forms

from .test_report import BUTTERFLY, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model of seed 0, and one of seed 2 with a ternary W_down."""
    save(tmp_path / "digits.safetensors", BUTTERFLY)
    ternary = ButterflyConfig(d_model=16, d_ff=32, experts=3, angle_std=1.0, down="ternary")
    save(tmp_path / "digits-ternary-down-seed2.safetensors", ternary)
    return tmp_path


def test_every_form_of_every_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of kinds, seeds and forms; a step is told for each."""
    told: list[str] = []
    monkeypatch.setattr(forms, "_percent_right", lambda path, mode, angles: 50.0)
    found = forms.accuracies(folder, told.append)
    runs = [("butterfly", 0), ("ternary-down", 2)]
    assert [(a.kind, a.seed, a.mode, a.angles) for a in found] == [
        (*run, *form) for run in runs for form in forms.FORMS
    ]
    assert told[1] == "compile digits in f32 f16 angles (2 of 14)"
    assert forms.read(folder / "forms.json") == found


def test_it_goes_on_where_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the file is not measured again."""
    measured: list[str] = []

    def once(path: Path, mode: str, angles: str | None) -> float:
        measured.append(mode)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return 25.0

    monkeypatch.setattr(forms, "_percent_right", once)
    with pytest.raises(KeyboardInterrupt):
        forms.accuracies(folder)
    assert len(json.loads((folder / "forms.json").read_text())) == 2
    assert len(forms.accuracies(folder)) == 14
    assert len(measured) == 1 + 14


def test_a_model_that_is_gone_has_no_forms(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its accuracies are no longer told, nor kept."""
    monkeypatch.setattr(forms, "_percent_right", lambda path, mode, angles: 50.0)
    forms.accuracies(folder)
    (folder / "digits.safetensors").unlink()
    assert {each.kind for each in forms.accuracies(folder)} == {"ternary-down"}


def test_accuracy_is_that_of_the_compiled_model(tmp_path: Path) -> None:
    """Of two images, one with its true answer as label, a half is right."""
    path = save(tmp_path / "digits.safetensors", BUTTERFLY)
    held = read_checkpoint(path)
    model, images = held.model(), held.images["test"]
    answers = model(torch.from_numpy(images.floats())).argmax(-1).numpy()
    right = 100 * float(np.mean(answers == images.labels))
    assert forms._percent_right(path, "f32", None) == right


def test_a_folder_without_models_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with the error's status, and says how to train."""
    assert forms.main([str(tmp_path)]) == 2
    assert "models.series digits" in capsys.readouterr().err
