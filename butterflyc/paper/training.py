"""``butterflyc paper --train``: every model of the report trained and compiled afresh."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ..models.checkpoint import DIGITS, DIGITS_STANDARD, TEXT
from ..models.recipes import run_name
from ..models.series import cifar100_series, digits_series, text_series, train_series
from ..models.text import library_text
from .forms import accuracies
from .trained import Trained


@dataclass(frozen=True)
class Checkpoints:
    """The models whose experts and activations are measured: of digits, and of text."""

    butterfly: Path
    standard: Path | None = None
    text: Path | None = None


SHIPPED = Checkpoints(DIGITS, DIGITS_STANDARD, TEXT)


def trained_in(folder: Path) -> Checkpoints:
    """Those that ``train_all`` leaves in ``folder``: seed 0 of each."""
    names = [run_name("digits", "butterfly", 0), run_name("digits", "standard", 0)]
    names.append(run_name("text", "butterfly", 0))
    return Checkpoints(*(folder / f"{name}.safetensors" for name in names))


def train_all(
    folder: Path, cifar100: Path | None = None, console: Console | None = None
) -> Trained:
    """Train the series of models into ``folder``, and compile those of digits in every form.

    What is trained there already is read, so that it may be stopped at any time. ``cifar100``: the
    folder of its unpacked files; without it nothing is trained on it. Raises what `train_series`
    and ``accuracies`` do.
    """
    console = console or Console(stderr=True)
    digits = train_series(digits_series(), folder, console=console)
    forms = accuracies(folder, lambda step: console.print(step, highlight=False, soft_wrap=True))
    text = train_series(text_series(library_text()), folder, console=console)
    images = train_series(cifar100_series(cifar100), folder, console=console) if cifar100 else []
    return Trained(digits=digits, text=text, forms=forms, cifar100=images)
