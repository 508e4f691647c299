"""All models that we report, trained one after the other: kinds, ablations, seeds.

``python -m butterflyc.models.series digits|text|cifar100 -o FOLDER`` may be stopped at any time and
goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..compiler.errors import ButterflycError, UsageError, unknown_name
from .checkpoint import read_checkpoint, write_atomically
from .data import cifar100, digits
from .image_task import ImageTask
from .recipes import (
    COMPARED,
    DIGITS_KINDS,
    KINDS,
    TEXT_KINDS,
    cifar100_recipe,
    digits_recipe,
    run_name,
    text_recipe,
)
from .text import TextSplit, library_text
from .text_task import TextTask
from .train import needed, train
from .trainer import Task

SEEDS = (0, 1, 2)
Run = tuple[str, int]  # a kind and a seed


@dataclass(frozen=True)
class Series:
    """Trainings on the same data: how each is made, which there are, and what tells their worth."""

    data: str
    task: Callable[[str, int], Task[Any]]  # from a kind and a seed
    runs: Sequence[Run]
    figure: str


def digits_series() -> Series:
    """ViTs on digits, three seeds of a kind, but one that begins as the papers' models do.

    ToolMissing without scikit-learn.
    """
    split = digits()

    def task(kind: str, seed: int) -> Task[Any]:
        config = replace(digits_recipe(kind), seed=seed)
        return ImageTask(config, split, with_images=True)

    *forms, no_smoothness, papers_start = DIGITS_KINDS
    runs = [(kind, seed) for seed in SEEDS for kind in forms]
    runs += [*((no_smoothness, seed) for seed in SEEDS), (papers_start, 0)]
    return Series("digits", task, runs, "accuracy")


def cifar100_series(images: Path) -> Series:
    """The papers' three models on CIFAR-100 in ``images``. Raises what reading it does."""
    split = cifar100(images)

    def task(kind: str, seed: int) -> Task[Any]:
        return ImageTask(replace(cifar100_recipe(KINDS[kind]), seed=seed), split)

    return Series("cifar100", task, [(kind, 0) for kind in KINDS], "accuracy")


def text_series(text: TextSplit) -> Series:
    """Language models on a text: what is compared with three seeds, each ablation with one."""

    def task(kind: str, seed: int) -> Task[Any]:
        return TextTask(replace(text_recipe(kind), seed=seed), text)

    runs = [(kind, seed) for seed in SEEDS for kind in (TEXT_KINDS if seed == 0 else COMPARED)]
    return Series("text", task, runs, "bits_per_byte")


@dataclass(frozen=True)
class Outcome:
    """What one trained model is worth on data that it was not trained on.

    ``figures``: what the checkpoint notes of its test, and of its text. ``curve``: of each epoch
    the mean loss, and of every tenth of the run what was measured then.
    """

    kind: str
    seed: int
    parameters: int
    figures: dict[str, float]
    curve: list[dict[str, float]]


def train_series(
    series: Series,
    folder: Path,
    *,
    runs: Sequence[Run] | None = None,
    console: Console | None = None,
) -> list[Outcome]:
    """Train what is not trained yet of ``runs`` (default all of the series), and read the rest.

    The checkpoints are those of ``python -m butterflyc.models.train``; outcomes are also written
    to ``folder/DATA.json``, after every run: those of ``runs`` alone. Raises UsageError for a
    checkpoint of other settings or of other data.
    """
    console = console or Console(stderr=True)
    runs = series.runs if runs is None else runs
    outcomes: list[Outcome] = []
    for number, (kind, seed) in enumerate(runs, start=1):
        name = run_name(series.data, kind, seed)
        path = folder / f"{name}.safetensors"
        task = series.task(kind, seed)
        if not path.exists():
            console.print(f"run {number} of {len(runs)}: {name}", highlight=False)
            begun = (folder / f"{name}.state").exists()
            train(task, folder, name=name, resume=begun, console=console)
        outcomes.append(_outcome(path, kind, seed, task))
        content = json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n"
        write_atomically(folder / f"{series.data}.json", content.encode())
    return outcomes


def _outcome(path: Path, kind: str, seed: int, task: Task[Any]) -> Outcome:
    held = read_checkpoint(path)
    text = held.notes.get("text", {})
    corpus = task.data.digest if isinstance(task, TextTask) else None
    wanted = json.loads(task.config.as_json()), corpus
    if (held.notes.get("training"), text.get("corpus")) != wanted or "curve" not in held.notes:
        raise UsageError(
            "this checkpoint was trained with other settings, on another text, or by a version "
            "that kept no training curve",
            where=str(path),
            help="choose another folder with -o, or remove that file to train it again",
        )
    numbers = {name: value for name, value in text.items() if isinstance(value, int)}
    return Outcome(
        kind,
        seed,
        parameters=sum(value.numel() for value in held.weights.values()),
        figures={**held.notes["test"], **numbers},
        curve=held.notes["curve"],
    )


def table(series: Series, outcomes: Sequence[Outcome]) -> Table:
    """The outcomes of each kind: the mean over its seeds, and their standard deviation."""
    name = series.figure.replace("_", " ")
    shown = Table("kind", "seeds", name, "deviation", "least", "most", "parameters")
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        rows = [outcome for outcome in outcomes if outcome.kind == kind]
        values = [row.figures[series.figure] for row in rows]
        deviation = f"{statistics.stdev(values):.4f}" if len(values) > 1 else ""
        ends = f"{min(values):.4f}", f"{max(values):.4f}"
        mean = f"{statistics.fmean(values):.4f}"
        shown.add_row(kind, str(len(rows)), mean, deviation, *ends, f"{rows[0].parameters:,}")
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is that of the error, if any."""
    parser = argparse.ArgumentParser(prog="python -m butterflyc.models.series")
    parser.add_argument("data", choices=["digits", "text", "cifar100"])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--kind", action="append", help="only this kind; may be repeated")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="only this seed (default all)")
    parser.add_argument("--images", type=Path, help="CIFAR-100: the folder of the unpacked files")
    parser.add_argument("--text", type=Path, help="another folder of Python sources")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    try:
        series = _chosen_series(chosen)
        kinds = dict.fromkeys(kind for kind, _ in series.runs)
        for kind in chosen.kind or ():
            if kind not in kinds:
                raise unknown_name(f"kind of the series '{series.data}'", kind, [*kinds])
        runs = [
            (kind, seed)
            for kind, seed in series.runs
            if kind in (chosen.kind or [kind]) and chosen.seed in (None, seed)
        ]
        outcomes = train_series(series, chosen.output, runs=runs)
    except ButterflycError as error:
        print(f"error[{error.code}]: {error}", file=sys.stderr)
        return error.exit_status
    Console().print(table(series, outcomes))
    return 0


def _chosen_series(chosen: argparse.Namespace) -> Series:
    if chosen.data == "text":
        return text_series(library_text(chosen.text))
    return cifar100_series(needed(chosen.images)) if chosen.data == "cifar100" else digits_series()


if __name__ == "__main__":
    raise SystemExit(main())
