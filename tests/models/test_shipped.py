"""The shipped digits model: accurate, and wrong as soon as its rotations are wrong."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from butterflyc.compiler.errors import Damaged
from butterflyc.models.butterfly import ButterflyConfig, ButterflyMoE
from butterflyc.models.checkpoint import (
    DIGITS,
    TEXT,
    digits_calibration,
    digits_test,
    load_checkpoint,
    load_digits,
    read_checkpoint,
    save_checkpoint,
)
from butterflyc.models.criteria import Criteria, measure, with_angles
from butterflyc.models.data import digits
from butterflyc.models.language import LanguageModel, active_parameters
from butterflyc.models.recipes import digits_recipe, text_recipe
from butterflyc.models.text_task import bits_per_byte
from butterflyc.models.vit import ViT


@pytest.fixture(scope="module")
def model() -> ViT:
    """The shipped model."""
    return load_digits()


@pytest.fixture(scope="module")
def found(model: ViT) -> Criteria:
    """Its criteria on the 360 test images."""
    test = digits_test()
    return measure(model, torch.from_numpy(test.floats()), torch.from_numpy(test.labels))


def test_accuracy(found: Criteria) -> None:
    """At least 96 % of the images that it was not trained on are right."""
    assert found.accuracy >= 96.0


def test_zero_angles_cost_ten_points(found: Criteria) -> None:
    """Without its rotations the model loses at least 10 points."""
    assert found.accuracy - found.zero_angles >= 10.0


def test_expert_0s_angles_cost_two_points(found: Criteria) -> None:
    """With expert 0's angles for every expert the model loses at least 2 points."""
    assert found.accuracy - found.expert0_angles >= 2.0


def test_every_expert_works(found: Criteria) -> None:
    """In every layer every expert gets at least 3 % of the (token, expert) pairs."""
    assert found.least_share >= 3.0
    assert found.met


def test_recorded_figures_are_true(found: Criteria) -> None:
    """The figures in the file are those of the model in it, but for another CPU's rounding."""
    noted = read_checkpoint(DIGITS).notes["test"]
    for name in ("accuracy", "zero_angles", "expert0_angles"):
        assert noted[name] == pytest.approx(getattr(found, name), abs=0.6)


def test_configuration_is_the_recipes() -> None:
    """The file was made by the recipe in models/recipes.py."""
    _, config = load_checkpoint(DIGITS)
    assert config == digits_recipe().model
    assert isinstance(config.mlp, ButterflyConfig)


def test_shipped_images_are_the_splits() -> None:
    """64 calibration and 360 test images, the same as scikit-learn gives."""
    pytest.importorskip("sklearn", reason="scikit-learn brings the images")
    split = digits()
    for shipped, wanted in ((digits_calibration(), split.calibration), (digits_test(), split.test)):
        assert np.array_equal(shipped.images, wanted.images)
        assert np.array_equal(shipped.labels, wanted.labels)
        assert shipped.white == 16


def test_shipped_images_need_no_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images come out of the file where scikit-learn is not installed."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert digits_test().images.shape == (360, 1, 8, 8)


def test_missing_images_are_damaged(
    tmp_path: Path, model: ViT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A digits file without its images is damaged, and says so."""
    save_checkpoint(tmp_path / "bare.safetensors", model)
    monkeypatch.setattr("butterflyc.models.checkpoint.DIGITS", tmp_path / "bare.safetensors")
    with pytest.raises(Damaged, match="the test images are missing"):
        digits_test()


def test_ablations_change_a_copy(model: ViT) -> None:
    """Zeroed and expert 0's angles are as named, and the model itself keeps its own."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for zero in (True, False):
        for layer in with_angles(model, zero=zero).modules():
            if isinstance(layer, ButterflyMoE):
                assert torch.equal(layer.theta, layer.theta[:1].expand_as(layer.theta))
                assert (layer.phi == 0).all() == zero
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_shipped_language_model() -> None:
    """It predicts most windows of its text better than an n-gram model does unseen text."""
    held = read_checkpoint(TEXT)
    model = held.model()
    assert isinstance(model, LanguageModel)
    assert active_parameters(model) >= 1_000_000
    assert held.notes["text"]["bytes_seen"] >= 2_000_000
    assert held.notes["test"]["bits_per_byte"] < held.notes["test"]["ngram_bits_per_byte"]
    bits = [bits_per_byte(model, window) for window in held.text["calibration"][:16]]
    assert statistics.median(bits) < held.notes["test"]["ngram_bits_per_byte"]


def test_shipped_language_model_is_that_of_the_recipe() -> None:
    """The checkpoint's settings are what ``models.train text`` trains by."""
    training = read_checkpoint(TEXT).notes["training"]
    assert training == json.loads(text_recipe().as_json())
