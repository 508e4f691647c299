"""Training of language models: it learns, it resumes exactly, and each kind is what it says."""

from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from butterflyc.compiler.errors import BadInput, UnknownName
from butterflyc.models.blocks import DenseConfig, MlpConfig
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.checkpoint import read_checkpoint
from butterflyc.models.language import LanguageConfig, LanguageModel, active_parameters
from butterflyc.models.recipes import COMPARED, TEXT_KINDS, text_recipe
from butterflyc.models.standard import StandardConfig
from butterflyc.models.text import TextSplit
from butterflyc.models.text_task import TextTask, TextTraining, bits_per_byte
from butterflyc.models.train import main, train
from butterflyc.models.trainer import Trainer

LAYER = ButterflyConfig(d_model=16, d_ff=32, experts=4, gate="topk_softmax", angle_std=0.5)
SENTENCE = np.frombuffer(b"for x in y:\n    z\n" * 40, np.uint8)
QUIET = Console(file=io.StringIO())


def recipe(mlp: MlpConfig = LAYER) -> TextTraining:
    """Two epochs of ten steps of a model with one layer that sees 16 bytes."""
    model = LanguageConfig(context=16, d_model=16, heads=2, layers=1, mlp=mlp)
    return TextTraining(model, epochs=2, batch=8, learning_rate=1e-2, epoch_steps=10)


def task(mlp: MlpConfig = LAYER) -> TextTask:
    """That recipe on one sentence, again and again."""
    return TextTask(recipe(mlp), TextSplit(SENTENCE, SENTENCE[:201]))


@pytest.mark.parametrize("mlp", [LAYER, StandardConfig(16, 32, 4), DenseConfig(16, 32)])
def test_training_learns_and_writes_a_checkpoint(tmp_path: Path, mlp: MlpConfig) -> None:
    """Twenty steps learn most of a sentence; figures, text and settings are in the checkpoint."""
    path = train(task(mlp), tmp_path, name="x", console=QUIET)
    assert path is not None
    held = read_checkpoint(path)
    figures = held.notes["test"]
    assert figures["bits_per_byte"] < 4
    assert figures["perplexity_per_byte"] == pytest.approx(2 ** figures["bits_per_byte"], rel=1e-3)
    assert 0 < figures["ngram_bits_per_byte"] < 1
    assert held.text["calibration"].shape == (64, 16)
    assert held.notes["text"]["bytes_seen"] == 2 * 10 * 8 * 16
    model = held.model()
    assert isinstance(model, LanguageModel)
    assert held.notes["text"]["active_parameters"] == active_parameters(model)
    assert bits_per_byte(model, SENTENCE[:201]) == pytest.approx(figures["bits_per_byte"], abs=1e-4)


def test_resumed_training_gives_the_same_weights(tmp_path: Path) -> None:
    """Stopped after the first epoch and resumed, the checkpoint has the bytes of one whole run."""
    whole = train(task(), tmp_path / "a", name="x", console=QUIET)
    assert train(task(), tmp_path / "b", name="x", minutes=0.0, console=QUIET) is None
    parts = train(task(), tmp_path / "b", name="x", resume=True, console=QUIET)
    assert whole is not None
    assert parts is not None
    assert whole.read_bytes() == parts.read_bytes()


def test_batches_are_windows_of_the_text() -> None:
    """Each label is the byte after its input, and both stand in the text as they are drawn."""
    batches = list(task().batches(torch.Generator().manual_seed(0)))
    assert len(batches) == 10
    for inputs, labels in batches:
        assert inputs.shape == labels.shape == (8, 16)
        assert torch.equal(inputs[:, 1:], labels[:, :-1])
        for row, last in zip(inputs, labels[:, -1:], strict=True):
            assert bytes(torch.cat((row, last)).tolist()) in SENTENCE.tobytes()


@torch.no_grad()
@pytest.mark.parametrize("length", [2, 9, 17, 18, 24, 25, 33, 40, 50])
def test_bits_per_byte_counts_every_byte_once(length: int) -> None:
    """The mean over all bytes but the first, each predicted from half a window or more."""
    torch.manual_seed(0)
    model, text = LanguageModel(recipe().model), SENTENCE[:length]
    # Ends of windows: after the first whole one every 8 bytes, the last at the end of the text.
    ends = [*range(16, length - 1, 8), length - 1]
    total, done = 0.0, 0
    for end in ends:
        window = torch.tensor(text[max(0, end - 16) : end + 1].astype(np.int64))
        logits = model(window[None, :-1])[0].log_softmax(-1)
        losses = -logits.gather(1, window[1:, None]) / math.log(2)
        total += losses[done - end :].sum().item()
        done = end
    assert bits_per_byte(model, text) == pytest.approx(total / (length - 1), rel=1e-5)


def test_some_windows_give_a_figure_near_that_of_all() -> None:
    """As many windows as there are but the first: the figure of all bytes but the first 16."""
    torch.manual_seed(0)
    model, text = LanguageModel(recipe().model), SENTENCE[:81]
    every, first = bits_per_byte(model, text), bits_per_byte(model, text[:17])
    rest = bits_per_byte(model, text, windows=8)
    assert rest == pytest.approx((80 * every - 16 * first) / 64, rel=1e-5)


def test_a_short_text_is_refused() -> None:
    """Less text than a window, to train on or held out, cannot be used."""
    with pytest.raises(BadInput, match="16 bytes of text for windows of 16"):
        TextTask(recipe(), TextSplit(SENTENCE, SENTENCE[:16]))


@pytest.mark.parametrize("rate", [0.0, 1e-2])
def test_angles_are_frozen_at_a_rate_of_zero(rate: float) -> None:
    """At rate 0 exactly the angles stay as they were drawn; else every parameter moves."""
    frozen = Trainer(TextTask(replace(recipe(), angle_learning_rate=rate), task().data))
    before = {name: value.clone() for name, value in frozen.model.state_dict().items()}
    list(frozen.train_epoch())
    kept = {name for name, value in frozen.model.state_dict().items() if value.equal(before[name])}
    assert kept == (set() if rate else {"blocks.0.mlp.theta", "blocks.0.mlp.phi"})


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_kinds_differ_in_their_layers_alone(kind: str) -> None:
    """What is compared sees two million bytes; ablations see a third, in their own same steps."""
    recipe = text_recipe(kind)
    base = text_recipe("butterfly" if kind in COMPARED else "reference")
    assert text_recipe().bytes_seen >= 2_000_000
    assert text_recipe().bytes_seen == 3 * text_recipe("reference").bytes_seen
    assert replace(recipe.model, mlp=base.model.mlp) == base.model
    assert replace(recipe, model=base.model, angle_learning_rate=1e-2) == base
    assert (recipe.angle_learning_rate == 0) == (kind in ("static", "frozen"))


def test_kinds_are_what_they_say() -> None:
    """Over a million active parameters; depths, angles and W_down by name; others are unknown."""
    assert active_parameters(LanguageModel(text_recipe().model)) > 1_000_000
    layers = {kind: text_recipe(kind).model.mlp for kind in TEXT_KINDS}
    depths = {}
    for kind, layer in layers.items():
        if isinstance(layer, ButterflyConfig):
            depths[kind] = layer.layers_in, layer.layers_out
            assert (layer.down == "absent") == (kind == "linear")
            assert (layer.down == "ternary") == (kind == "ternary-down")
            assert (layer.angle_std == 0) == (kind == "static")
    assert Counter(depths.values()) == Counter({(2, 2): 6, (1, 1): 1, (8, 9): 1})
    assert depths["deepest"] == (8, 9)
    with pytest.raises(UnknownName, match="kind of language model 'dens'"):
        text_recipe("dens")


def test_command_line_trains_on_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kind and a seed name the files; a state is left when the minutes are over."""
    monkeypatch.setattr("butterflyc.models.train.text_recipe", lambda kind: recipe())
    monkeypatch.setattr("butterflyc.models.train.library_text", lambda folder: task().data)
    command = ["text", "-o", str(tmp_path), "--kind", "frozen", "--seed", "3"]
    assert main([*command, "--minutes", "0"]) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["text-frozen-seed3.state"]
    assert main([*command, "--resume"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "text-frozen-seed3.safetensors")
    assert "held out: {'bits_per_byte'" in err
    for data, kind in (("text", "frozn"), ("digits", "linear"), ("cifar100", "linear")):
        images = ["--images", str(tmp_path)]
        assert main([data, "-o", str(tmp_path), "--kind", kind, *images]) == 2
        assert f"'{kind}'" in capsys.readouterr().err
