"""All language models that we report, trained one after the other: kinds, ablations, seeds.

``python -m butterflyc.models.series -o FOLDER`` may be stopped at any time and goes on where it was
when it is started again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ..compiler.errors import ButterflycError, UsageError
from .checkpoint import read_checkpoint, write_atomically
from .recipes import TEXT_KINDS, run_name, text_recipe
from .text import TextSplit, library_text
from .text_task import TextTask, TextTraining
from .train import train

# Those that are compared have three seeds; each ablation is beside seed 0 of the first.
COMPARED = ("butterfly", "standard", "dense")
SEEDS = (0, 1, 2)
RUNS = tuple(
    (kind, seed) for kind in TEXT_KINDS for seed in (SEEDS if kind in COMPARED else SEEDS[:1])
)


@dataclass(frozen=True)
class Outcome:
    """What one trained language model is worth on held-out text; perplexity is 2 ** bits."""

    kind: str
    seed: int
    bits_per_byte: float
    perplexity_per_byte: float
    ngram_bits_per_byte: float
    parameters: int
    active_parameters: int
    bytes_seen: int


def train_series(
    folder: Path,
    data: TextSplit,
    *,
    runs: Sequence[tuple[str, int]] = RUNS,
    console: Console | None = None,
) -> list[Outcome]:
    """Train what is not trained yet of ``runs``, pairs of a kind and a seed, and read the rest.

    The checkpoints are those of ``python -m butterflyc.models.train text``; the outcomes are also
    written to ``folder/text.json``. Raises UsageError for a checkpoint of other settings or of
    another text.
    """
    console = console or Console(stderr=True)
    outcomes = []
    for number, (kind, seed) in enumerate(runs, start=1):
        recipe = replace(text_recipe(kind), seed=seed)
        name = run_name("text", kind, seed)
        path = folder / f"{name}.safetensors"
        if not path.exists():
            console.print(f"run {number} of {len(runs)}: {name}", highlight=False)
            begun = (folder / f"{name}.state").exists()
            task = TextTask(recipe, data)
            train(task, folder, name=name, resume=begun, console=console)
        outcomes.append(_outcome(path, kind, recipe, data))
    content = json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n"
    write_atomically(folder / "text.json", content.encode())
    return outcomes


def _outcome(path: Path, kind: str, recipe: TextTraining, data: TextSplit) -> Outcome:
    held = read_checkpoint(path)
    made = held.notes["training"], held.notes["text"]["corpus"]
    if made != (json.loads(recipe.as_json()), data.digest):
        raise UsageError(
            "this checkpoint was trained with other settings, or on another text",
            where=str(path),
            help="choose another folder with -o, or remove that file to train it again",
        )
    return Outcome(
        kind,
        recipe.seed,
        **held.notes["test"],
        parameters=sum(value.numel() for value in held.weights.values()),
        active_parameters=held.notes["text"]["active_parameters"],
        bytes_seen=held.notes["text"]["bytes_seen"],
    )


def table(outcomes: Sequence[Outcome]) -> Table:
    """The outcomes of each kind: the mean over its seeds, and from the least to the most."""
    shown = Table("kind", "seeds", "bits per byte", "spread", "perplexity", "active", "all")
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        rows = [outcome for outcome in outcomes if outcome.kind == kind]
        bits = [row.bits_per_byte for row in rows]
        mean = sum(bits) / len(bits)
        sizes = (f"{count:,}" for count in (rows[0].active_parameters, rows[0].parameters))
        spread = f"{min(bits):.4f}-{max(bits):.4f}"
        shown.add_row(kind, str(len(rows)), f"{mean:.4f}", spread, f"{2**mean:.3f}", *sizes)
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is that of the error, if any."""
    parser = argparse.ArgumentParser(prog="python -m butterflyc.models.series")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--kind", choices=TEXT_KINDS, help="only this kind (default all)")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="only this seed (default all)")
    parser.add_argument("--text", type=Path, help="another folder of Python sources")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    runs = [
        (kind, seed)
        for kind, seed in RUNS
        if chosen.kind in (None, kind) and chosen.seed in (None, seed)
    ]
    try:
        outcomes = train_series(chosen.output, library_text(chosen.text), runs=runs)
    except ButterflycError as error:
        print(f"error[{error.code}]: {error}", file=sys.stderr)
        return error.exit_status
    Console().print(table(outcomes))
    if outcomes:
        print(f"n-gram of order 3: {outcomes[0].ngram_bits_per_byte:.4f} bits per byte")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
