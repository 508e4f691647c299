"""The command that trains: ``python -m butterflyc.models.train digits -o FOLDER [--resume]``.

It made the shipped ``digits.safetensors``. It may be stopped at any time and goes on with
``--resume``; the weights are those of an uninterrupted run.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..compiler.errors import ButterflycError, CannotWrite, UsageError
from .blocks import DenseConfig, MlpConfig
from .butterfly import ButterflyConfig
from .checkpoint import save_checkpoint
from .criteria import measure, percent_right
from .data import Split, cifar100, digits
from .standard import StandardConfig
from .trainer import TrainConfig, Trainer
from .vit import ViT, ViTConfig

KINDS: dict[str, MlpConfig] = {
    "butterfly": ButterflyConfig(),
    "standard": StandardConfig(),
    "dense": DenseConfig(),
}


def digits_recipe(epochs: int = 60) -> TrainConfig:
    """The run that made the shipped model: angles spread wide and experts heard, so both matter."""
    layer = ButterflyConfig(
        d_model=64,
        d_ff=256,
        experts=8,
        top_k=2,
        gate="topk_softmax",
        angle_std=1.0,
        matrix_gain=2.0,
    )
    model = ViTConfig(
        image=8,
        channels=1,
        patch=1,
        classes=10,
        d_model=64,
        heads=4,
        layers=4,
        position_std=1.0,
        mlp=layer,
    )
    return TrainConfig(
        model,
        epochs=epochs,
        batch=16,
        learning_rate=1.5e-3,
        angle_learning_rate=1e-2,
    )


def cifar100_recipe(mlp: MlpConfig, epochs: int = 200) -> TrainConfig:
    """The papers' models on CIFAR-100: their widths, depths and loss weights."""
    model = ViTConfig(mlp=mlp)
    return TrainConfig(model, epochs=epochs, batch=128, learning_rate=1e-3, shift=4)


def train(
    recipe: TrainConfig,
    data: Split,
    folder: Path,
    *,
    name: str,
    resume: bool = False,
    minutes: float | None = None,
    console: Console | None = None,
    with_images: bool = False,
) -> Path | None:
    """Train, and write ``folder/name.safetensors``; its path, or None if the minutes ran out.

    The state is saved as ``folder/name.state`` after every epoch. ``with_images`` puts the
    calibration and test images into the checkpoint.
    """
    _make_folder(folder)
    console = console or Console(stderr=True)
    state = folder / f"{name}.state"
    trainer = Trainer(recipe, data.train)
    if resume:
        trainer.resume(state)
        console.print(f"resumed after epoch {trainer.epoch} of {recipe.epochs}")
    elif state.exists():
        raise UsageError(
            f"'{state}' holds a training that was begun",
            help="go on with --resume, or remove that file to start afresh",
        )
    _run_epochs(trainer, data, state, math.inf if minutes is None else minutes, console)
    if not trainer.done:
        console.print(f"stopped after {minutes} minutes: go on with --resume")
        return None
    return _finish(trainer, data, folder / f"{name}.safetensors", with_images)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(
            f"cannot make the folder '{folder}': {error.strerror}", help="choose another with -o"
        ) from error


def _run_epochs(
    trainer: Trainer, data: Split, state: Path, minutes: float, console: Console
) -> None:
    """Train to the end or until the minutes are over; a line an epoch, figures every tenth."""
    epochs, started = trainer.config.epochs, time.monotonic()
    with _progress(console) as progress:
        task = progress.add_task("", total=epochs, completed=trainer.epoch)
        while not trainer.done:
            losses = [terms.total.item() for terms in trainer.train_epoch()]
            trainer.save(state)
            loss = f"loss {sum(losses) / len(losses):.4f}"
            measured = trainer.epoch % 10 == 0 or trainer.done
            figures = f"  {_figures(trainer.model, data)}" if measured else ""
            line = f"epoch {trainer.epoch}/{epochs}  {loss}{figures}"
            progress.update(task, advance=1, description=loss)
            progress.console.print(line, soft_wrap=True, highlight=False)
            if time.monotonic() - started > 60 * minutes:
                break


def _progress(console: Console) -> Progress:
    """A bar on a terminal; elsewhere nothing, so that only the plain lines remain."""
    columns = (BarColumn(), TextColumn("{task.completed}/{task.total} {task.description}"))
    return Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )


def _figures(model: ViT, data: Split) -> dict[str, float]:
    """Percent on the test set: accuracy, and for a ButterflyViT what its rotations are worth."""
    images, labels = torch.from_numpy(data.test.floats()), torch.from_numpy(data.test.labels)
    if isinstance(model.config.mlp, ButterflyConfig) and len(images) <= 1000:
        figures = asdict(measure(model, images, labels))
    else:
        was_training = model.training
        with torch.no_grad():
            parts = [model.eval()(part) for part in torch.split(images, 500)]
        model.train(was_training)
        figures = {"accuracy": percent_right(torch.cat(parts), labels)}
    return {key: round(value, 2) for key, value in figures.items()}


def _finish(trainer: Trainer, data: Split, path: Path, with_images: bool) -> Path:
    model = trainer.model
    notes: dict[str, Any] = {
        "test": _figures(model, data),
        "training": json.loads(trainer.config.as_json()),
        "torch": str(torch.__version__),
    }
    images = {"calibration": data.calibration, "test": data.test} if with_images else None
    save_checkpoint(path, model, images=images, notes=notes)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is that of the error, if any."""
    parser = argparse.ArgumentParser(prog="python -m butterflyc.models.train")
    parser.add_argument("data", choices=["digits", "cifar100"])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    parser.add_argument("--minutes", type=float, help="stop after so long; go on with --resume")
    parser.add_argument("--epochs", type=int, help="how often each image is seen")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--images", type=Path, help="CIFAR-100: the folder of the unpacked files")
    parser.add_argument(
        "--model", choices=sorted(KINDS), default="butterfly", help="CIFAR-100 only"
    )
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    try:
        recipe, data, name = _recipe(chosen)
        path = train(
            recipe,
            data,
            chosen.output,
            name=name,
            resume=chosen.resume,
            minutes=chosen.minutes,
            with_images=chosen.data == "digits",
        )
    except ButterflycError as error:
        print(f"error[{error.code}]: {error}", file=sys.stderr)
        return error.exit_status
    if path is not None:
        print(path)
    return 0


def _recipe(chosen: argparse.Namespace) -> tuple[TrainConfig, Split, str]:
    if chosen.data == "digits":
        recipe, data, name = digits_recipe(), digits(), "digits"
    elif chosen.images is None:
        raise UsageError(
            "CIFAR-100 is not shipped with butterflyc",
            help="give --images FOLDER, the unpacked cifar-100-python",
        )
    else:
        recipe = cifar100_recipe(KINDS[chosen.model])
        data, name = cifar100(chosen.images), f"cifar100-{chosen.model}"
    return (replace(recipe, epochs=chosen.epochs) if chosen.epochs else recipe), data, name


if __name__ == "__main__":
    raise SystemExit(main())
