"""Training: it learns, it resumes exactly, and its command line reports errors as ours."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from butterflyc.compiler.errors import BadInput, CannotWrite, Damaged, UnknownName, UsageError
from butterflyc.models.blocks import DenseConfig, MlpConfig
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.checkpoint import read_checkpoint
from butterflyc.models.data import ImageSet, Split
from butterflyc.models.image_task import ImageTask, ImageTraining, shifted
from butterflyc.models.recipes import DIGITS_KINDS, cifar100_recipe, digits_recipe
from butterflyc.models.standard import StandardConfig
from butterflyc.models.train import main, train
from butterflyc.models.trainer import Trainer, make_optimizer, schedule
from butterflyc.models.vit import ViT, ViTConfig

LAYER = ButterflyConfig(d_model=16, d_ff=32, experts=4, gate="topk_softmax", angle_std=0.5)


def recipe(mlp: MlpConfig = LAYER) -> ImageTraining:
    """Three epochs of a ViT with 5 tokens and one layer."""
    model = ViTConfig(
        image=8, channels=1, patch=4, classes=2, d_model=16, heads=2, layers=1, mlp=mlp
    )
    return ImageTraining(model, epochs=3, batch=8, learning_rate=1e-2)


def halves(count: int = 70) -> Split:
    """Two classes: which half of the image is bright."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, count)
    images = random.integers(0, 4, (count, 1, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, :, 4 * label : 4 * label + 4] += 12
    part = ImageSet(images, labels, 16)
    return Split(part, part)


def task() -> ImageTask:
    """That recipe on those images."""
    return ImageTask(recipe(), halves())


@pytest.mark.parametrize(
    "mlp",
    [
        LAYER,
        StandardConfig(d_model=16, d_ff=32, experts=4, gate="topk_softmax"),
        DenseConfig(d_model=16, d_ff=32),
    ],
)
def test_training_learns_and_writes_a_checkpoint(tmp_path: Path, mlp: MlpConfig) -> None:
    """Three epochs tell the halves apart; the checkpoint holds images, figures and settings."""
    console = Console(file=io.StringIO())
    images = ImageTask(recipe(mlp), halves(), with_images=True)
    path = train(images, tmp_path / "new", name="x", console=console)
    assert path is not None
    held = read_checkpoint(path)
    assert held.notes["test"]["accuracy"] > 95
    assert held.notes["training"]["epochs"] == 3
    assert held.images["calibration"].images.shape == (64, 1, 8, 8)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/3", "2/3", "3/3"]


def test_resumed_training_gives_the_same_weights(tmp_path: Path) -> None:
    """Stopped after each epoch and resumed, the checkpoint has the bytes of one whole run."""
    console = Console(file=io.StringIO())
    whole = train(task(), tmp_path / "a", name="x", console=console)
    parts = None
    for part in range(3):
        parts = train(
            task(),
            tmp_path / "b",
            name="x",
            resume=part > 0,
            minutes=0.0,
            console=console,
        )
        assert (parts is None) == (part < 2)
    assert whole is not None
    assert parts is not None
    assert whole.read_bytes() == parts.read_bytes()


def test_a_begun_training_is_not_overwritten(tmp_path: Path) -> None:
    """Starting again in the same folder without --resume is refused, as are other settings."""
    console = Console(file=io.StringIO())
    train(task(), tmp_path, name="x", minutes=0.0, console=console)
    with pytest.raises(UsageError, match="was begun"):
        train(task(), tmp_path, name="x", console=console)
    other = replace(recipe(), seed=1)
    with pytest.raises(UsageError, match="other settings"):
        train(ImageTask(other, halves()), tmp_path, name="x", resume=True, console=console)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    """A state file that was cut is damaged; a missing one is a usage error."""
    trainer, state = Trainer(task()), tmp_path / "x.state"
    trainer.save(state)
    content = state.read_bytes()
    for end in (0, 10, len(content) // 2, len(content) - 1):
        state.write_bytes(content[:end])
        with pytest.raises(Damaged, match="cannot be read"):
            trainer.resume(state)
    state.unlink()
    with pytest.raises(UsageError, match="nothing to resume"):
        trainer.resume(state)


def test_too_few_images_are_refused() -> None:
    """Fewer images than one batch cannot be trained on."""
    with pytest.raises(BadInput, match="7 training images"):
        ImageTask(recipe(), halves(7))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """An output folder below a file is refused before any training."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="cannot make the folder"):
        train(task(), tmp_path / "file" / "x", name="x")


def test_schedule_warms_up_and_falls_to_zero() -> None:
    """The rate rises over the warm-up, peaks near 1, and ends near 0."""
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(0.98, abs=0.02)
    assert rates[-1] < 0.001


def test_angles_have_their_own_rate_and_no_decay() -> None:
    """Exactly theta and phi are in the group without weight decay; every parameter is in one."""
    model = ViT(recipe().model)
    others, angles = make_optimizer(model, recipe()).param_groups
    assert [id(p) for p in angles["params"]] == [
        id(p) for name, p in model.named_parameters() if name.endswith(("theta", "phi"))
    ]
    assert (angles["weight_decay"], angles["peak"]) == (0.0, recipe().angle_learning_rate)
    assert len(others["params"]) + len(angles["params"]) == len(list(model.parameters()))


def test_shifts_move_whole_images() -> None:
    """Every shifted image is one of the nine moves of the original, and all nine occur."""
    image = torch.arange(1.0, 65.0).view(1, 1, 8, 8)
    wide = torch.nn.functional.pad(image, (1, 1, 1, 1))
    moves = [wide[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    random = torch.Generator().manual_seed(0)
    found = shifted(image.expand(200, 1, 8, 8), 1, random)
    seen = {next(i for i, move in enumerate(moves) if torch.equal(move[0], one)) for one in found}
    assert seen == set(range(9))
    assert torch.equal(shifted(image, 0, random), image)


def test_recipes_are_the_models_of_the_papers_and_ours() -> None:
    """The digits recipe has 65 tokens, d = 64, F = 256, 4 layers, 8 experts, top-2, L = 2."""
    model = digits_recipe().model
    assert (model.tokens, model.d_model, model.heads, model.layers) == (65, 64, 4, 4)
    assert isinstance(model.mlp, ButterflyConfig)
    assert (model.mlp.d_ff, model.mlp.experts, model.mlp.top_k) == (256, 8, 2)
    assert (model.mlp.layers_in, model.mlp.layers_out) == (2, 2)
    assert cifar100_recipe(ButterflyConfig()).model == ViTConfig()


@pytest.mark.parametrize("kind", DIGITS_KINDS)
def test_kinds_of_digits_differ_in_one_choice(kind: str) -> None:
    """The layer, or the weight of the smoothness; all else is that of the shipped model."""
    recipe, base = digits_recipe(kind), digits_recipe()
    assert (recipe.smoothness_weight == 0) == (kind == "no-smoothness")
    assert replace(recipe.model, mlp=base.model.mlp) == base.model
    assert replace(recipe, model=base.model, smoothness_weight=0.005) == base
    layer = recipe.model.mlp
    assert (layer.d_model, layer.d_ff) == (64, 256)
    if isinstance(layer, ButterflyConfig):
        assert layer.down == ("ternary" if kind == "ternary-down" else "float")
        assert layer.angle_std == (0.01 if kind == "papers-start" else 1.0)


def test_an_unknown_kind_of_digits_is_refused() -> None:
    """The error names what is known."""
    with pytest.raises(UnknownName, match="kind of model of digits 'dens'"):
        digits_recipe("dens")


def test_command_line_reports_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing CIFAR-100 data ends with exit status 2 and says what to give."""
    assert main(["cifar100", "-o", str(tmp_path)]) == 2
    assert "--images" in capsys.readouterr().err
    assert main(["cifar100", "-o", str(tmp_path), "--images", str(tmp_path / "no")]) == 2
    assert "error[BF200]: no folder" in capsys.readouterr().err


def test_command_line_stops_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--minutes 0`` trains one epoch and leaves a state; ``--resume`` ends in a checkpoint."""
    monkeypatch.setattr("butterflyc.models.train.digits", lambda: halves(16))
    command = ["digits", "-o", str(tmp_path), "--epochs", "2"]
    assert main([*command, "--minutes", "0"]) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits.state"]
    assert main([*command, "--resume"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "digits.safetensors")
