"""What each form of a trained model gets right once it is compiled: W_down, mode, angles.

``python -m butterflyc.paper.forms FOLDER`` compiles the models of digits that
``python -m butterflyc.models.series digits -o FOLDER`` has trained, and writes ``forms.json`` into
that folder. It may be stopped at any time and goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from rich.console import Console

from ..build import compile as compile_model
from ..compiler.errors import BadInput, ButterflycError
from ..compiler.files import write_whole
from ..models.checkpoint import read_checkpoint
from ..models.recipes import run_name
from ..models.series import SEEDS

KINDS = ("butterfly", "ternary-down")  # W_down in float, which int8 makes int8, and ternary
FORMS = (
    ("f32", None),
    ("f32", "f16"),
    ("f32", "i16"),
    ("f32", "i8"),
    ("int8", None),
    ("int8", "i16"),
    ("int8", "i8"),
)
FILE = "forms.json"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Accuracy:
    """Percent of the test images that a compiled model gets right.

    ``kind`` and ``seed`` name the training; ``angles`` is None where none were rounded.
    """

    kind: str
    seed: int
    mode: str
    angles: str | None
    accuracy: float


def accuracies(folder: Path, progress: Progress = lambda _: None) -> list[Accuracy]:
    """Compile every form of every such model in ``folder`` that has none in its ``forms.json``.

    Raises BadInput if no model is there, and what ``compile`` and writing do.
    """
    path = folder / FILE
    known = read(path) if path.exists() else []
    runs = [
        (kind, seed)
        for kind, seed in product(KINDS, SEEDS)
        if (folder / f"{run_name('digits', kind, seed)}.safetensors").exists()
    ]
    if not runs:
        raise BadInput(
            "no model of digits is in this folder",
            where=str(folder),
            help="train some with `python -m butterflyc.models.series digits -o FOLDER`",
        )
    wanted = [(*run, *form) for run, form in product(runs, FORMS)]
    known = [each for each in known if _form(each) in wanted]
    done = {_form(each) for each in known}
    missing = [form for form in wanted if form not in done]
    for number, (kind, seed, mode, angles) in enumerate(missing, start=1):
        name = run_name("digits", kind, seed)
        form = " ".join(filter(None, (mode, angles and f"{angles} angles")))
        progress(f"compile {name} in {form} ({number} of {len(missing)})")
        right = _percent_right(folder / f"{name}.safetensors", mode, angles)
        known.append(Accuracy(kind, seed, mode, angles, right))
        content = json.dumps([asdict(each) for each in known], indent=1) + "\n"
        write_whole(path, [content.encode()])
    return sorted(known, key=lambda each: wanted.index(_form(each)))


def read(path: Path) -> list[Accuracy]:
    """The accuracies that a file of them holds."""
    return [Accuracy(**each) for each in json.loads(path.read_text())]


def _form(each: Accuracy) -> tuple[str, int, str, str | None]:
    return each.kind, each.seed, each.mode, each.angles


def _percent_right(path: Path, mode: str, angles: str | None) -> float:
    test = read_checkpoint(path).images["test"]
    program = compile_model(str(path), target="host", mode=mode, angles=angles)
    answers = np.concatenate([np.asarray(program(image[None])) for image in test.floats()])
    return round(100 * float((answers.argmax(-1) == test.labels).mean()), 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is that of the error, if any."""
    parser = argparse.ArgumentParser(prog="python -m butterflyc.paper.forms")
    parser.add_argument("folder", type=Path, help="of the models, and for forms.json")
    console = Console(stderr=True)
    try:
        accuracies(
            parser.parse_args(arguments).folder,
            lambda step: console.print(step, highlight=False, soft_wrap=True),
        )
    except ButterflycError as error:
        print(f"error[{error.code}]: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
