"""The command that trains: ``python -m butterflyc.models.train digits -o FOLDER [--resume]``.

``digits`` made the shipped ``digits.safetensors``; ``text`` trains a language model on Python's
own library. A run may be stopped at any time and goes on with ``--resume``; the weights are those
of an uninterrupted run.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..compiler.errors import ButterflycError, CannotWrite, UsageError, unknown_name
from .data import cifar100, digits
from .image_task import ImageTask
from .recipes import (
    DIGITS_KINDS,
    KINDS,
    TEXT_KINDS,
    cifar100_recipe,
    digits_recipe,
    run_name,
    text_recipe,
)
from .text import library_text
from .text_task import TextTask
from .trainer import Model, Task, Trainer


def train(
    task: Task[Model],
    folder: Path,
    *,
    name: str,
    resume: bool = False,
    minutes: float | None = None,
    console: Console | None = None,
) -> Path | None:
    """Train, and write ``folder/name.safetensors``; its path, or None if the minutes ran out.

    The state is saved as ``folder/name.state`` after every epoch. Raises UsageError for a training
    that was begun there where it is not resumed, and what the task, `Trainer.resume` and writing
    raise.
    """
    _make_folder(folder)
    console = console or Console(stderr=True)
    state = folder / f"{name}.state"
    trainer = Trainer(task)
    if resume:
        trainer.resume(state)
        console.print(f"resumed after epoch {trainer.epoch} of {task.config.epochs}")
    elif state.exists():
        raise UsageError(
            f"'{state}' holds a training that was begun",
            help="go on with --resume, or remove that file to start afresh",
        )
    _run_epochs(trainer, state, math.inf if minutes is None else minutes, console)
    if not trainer.done:
        console.print(f"stopped after {minutes} minutes: go on with --resume")
        return None
    return _finish(trainer, folder / f"{name}.safetensors", console)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(
            f"cannot make the folder '{folder}': {error.strerror}", help="choose another with -o"
        ) from error


def _run_epochs(trainer: Trainer[Model], state: Path, minutes: float, console: Console) -> None:
    """Train to the end or until the minutes are over; a line an epoch, ten times with figures."""
    epochs, started = trainer.config.epochs, time.monotonic()
    with _progress(console) as progress:
        task = progress.add_task("", total=epochs, completed=trainer.epoch)
        while not trainer.done:
            losses = [terms.total.item() for terms in trainer.train_epoch()]
            loss = round(sum(losses) / len(losses), 4)
            measured = trainer.epoch % max(1, epochs // 10) == 0 and not trainer.done
            figures = trainer.task.figures(trainer.model, final=False) if measured else {}
            trainer.record({"loss": loss, **figures})
            trainer.save(state)
            line = f"epoch {trainer.epoch}/{epochs}  loss {loss:.4f}  {figures or ''}".rstrip()
            progress.update(task, advance=1, description=f"loss {loss:.4f}")
            progress.console.print(line, soft_wrap=True, highlight=False)
            if time.monotonic() - started > 60 * minutes:
                break


def _progress(console: Console) -> Progress:
    """A bar on a terminal; elsewhere nothing, so that only the plain lines remain."""
    columns = (BarColumn(), TextColumn("{task.completed}/{task.total} {task.description}"))
    return Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )


def _finish(trainer: Trainer[Model], path: Path, console: Console) -> Path:
    figures = trainer.task.figures(trainer.model, final=True)
    console.print(f"held out: {figures}", soft_wrap=True, highlight=False)
    notes: dict[str, Any] = {
        "test": figures,
        "training": json.loads(trainer.config.as_json()),
        "curve": trainer.curve,
        "torch": str(torch.__version__),
    }
    trainer.task.write(path, trainer.model, notes)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is that of the error, if any."""
    parser = argparse.ArgumentParser(prog="python -m butterflyc.models.train")
    parser.add_argument("data", choices=["digits", "cifar100", "text"])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder")
    parser.add_argument("--minutes", type=float, help="stop after so long; go on with --resume")
    parser.add_argument("--epochs", type=int, help="of images how often each is seen")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default 0)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--images", type=Path, help="CIFAR-100: the folder of the unpacked files")
    parser.add_argument("--text", type=Path, help="another folder of Python sources")
    parser.add_argument(
        "--kind",
        "--model",
        default="butterfly",
        help=f"digits: {', '.join(DIGITS_KINDS)}; CIFAR-100: {', '.join(KINDS)}; "
        f"text: {', '.join(TEXT_KINDS)}",
    )
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    try:
        path = _train_chosen(chosen)
    except ButterflycError as error:
        print(f"error[{error.code}]: {error}", file=sys.stderr)
        return error.exit_status
    if path is not None:
        print(path)
    return 0


def _train_chosen(chosen: argparse.Namespace) -> Path | None:
    changes = {"seed": chosen.seed, **({"epochs": chosen.epochs} if chosen.epochs else {})}
    name = run_name(chosen.data, chosen.kind, chosen.seed)
    how: dict[str, Any] = {"resume": chosen.resume, "minutes": chosen.minutes}
    if chosen.data == "digits":
        _check_kind(chosen.kind, DIGITS_KINDS)
        digits_config = replace(digits_recipe(chosen.kind), **changes)
        digits_task = ImageTask(digits_config, digits(), with_images=True)
        return train(digits_task, chosen.output, name=name, **how)
    if chosen.data == "text":
        _check_kind(chosen.kind, TEXT_KINDS)
        recipe = replace(text_recipe(chosen.kind), **changes)
        task = TextTask(recipe, library_text(chosen.text))
        return train(task, chosen.output, name=name, **how)
    images = needed(chosen.images)
    _check_kind(chosen.kind, list(KINDS))
    config = replace(cifar100_recipe(KINDS[chosen.kind]), **changes)
    cifar_task = ImageTask(config, cifar100(images))
    return train(cifar_task, chosen.output, name=name, **how)


def needed(images: Path | None) -> Path:
    """The folder of CIFAR-100. UsageError where none was given."""
    if images is None:
        raise UsageError(
            "CIFAR-100 is not shipped with butterflyc",
            help="give --images FOLDER, the unpacked cifar-100-python",
        )
    return images


def _check_kind(kind: str, known: Sequence[str]) -> None:
    if kind not in known:
        raise unknown_name("kind of model", kind, known)


if __name__ == "__main__":
    raise SystemExit(main())
