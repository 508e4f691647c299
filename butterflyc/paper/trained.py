"""Tables of trained models: digits, text, and the forms that models of digits are compiled to.

Their outcomes were measured once and are shipped, in ``results``; ``butterflyc paper --train``
measures them afresh, and those on CIFAR-100 where the user has it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..models.recipes import COMPARED
from ..models.series import Outcome
from . import forms
from .forms import Accuracy
from .rows import Row, Table

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "butterfly": "Butterfly",
    "standard": "StandardMoE",
    "dense": "dense",
    "ternary-down": "Butterfly, ternary W_down",
    "no-smoothness": "Butterfly, no smoothness term",
    "papers-start": "Butterfly, from the papers' small angles",
    "reference": "Butterfly",
    "linear": "linear form (eq. 3), no W_down",
    "static": "no rotations: all angles zero",
    "frozen": "rotations as drawn, never trained",
    "shallow": "L = 1",
    "deepest": "L = log2 of each width",
}


@dataclass(frozen=True)
class Trained:
    """Outcomes of the series of models, and of the forms of those of digits; any may be absent."""

    digits: Sequence[Outcome] = ()
    text: Sequence[Outcome] = ()
    forms: Sequence[Accuracy] = ()
    cifar100: Sequence[Outcome] = ()

    def tables(self) -> tuple[Table, ...]:
        """A table of each kind of outcome that is there."""
        tables = (
            cifar100_table(self.cifar100),
            digits_table(self.digits),
            forms_table(self.forms),
            text_table(self.text),
            ablations_table(self.text),
        )
        return tuple(table for table in tables if table.rows)


def read(folder: Path = RESULTS) -> Trained:
    """The outcomes in ``folder``: ``digits.json``, ``text.json`` and so on, those there are."""
    return Trained(
        digits=_outcomes(folder / "digits.json"),
        text=_outcomes(folder / "text.json"),
        cifar100=_outcomes(folder / "cifar100.json"),
        forms=forms.read(folder / forms.FILE) if (folder / forms.FILE).exists() else (),
    )


def _outcomes(path: Path) -> list[Outcome]:
    return [Outcome(**each) for each in json.loads(path.read_text())] if path.exists() else []


def cifar100_table(outcomes: Sequence[Outcome]) -> Table:
    """Percent right of the papers' models on CIFAR-100, for those who have its images."""
    kinds = _kinds(outcomes)
    rows = [_row(f"cifar100.{kind}", kind, "% right", outcomes, "accuracy") for kind in kinds]
    rows += _leads("cifar100", "points", outcomes, "accuracy", kinds)
    title = "Table 1 of ButterflyViT: accuracy on CIFAR-100"
    return Table("cifar100", title, "Percent of the 10,000 test images.", tuple(rows))


def digits_table(outcomes: Sequence[Outcome]) -> Table:
    """Percent right of the models of digits, and Butterfly's lead over each other kind."""
    kinds = _kinds(outcomes)
    rows = [_row(f"digits.{kind}", kind, "% right", outcomes, "accuracy") for kind in kinds]
    rows += _leads("digits", "points", outcomes, "accuracy", kinds)
    note = (
        "ViTs of 4 layers, d = 64, F = 256, 8 experts, top-2, 60 epochs of 1,437 images; percent "
        "of 360 test images, of which one is 0.28. Means over seeds; in the picture with bands "
        "from least to most. Not in the papers, which train on CIFAR-100."
    )
    return Table("digits", "Trained on digits: accuracy", note, tuple(rows), "curves.png")


def forms_table(accuracies: Sequence[Accuracy]) -> Table:
    """Percent right of the models of digits in each form that they were compiled to."""
    rows = []
    for kind, mode, angles in dict.fromkeys((a.kind, a.mode, a.angles) for a in accuracies):
        some = [a for a in accuracies if (a.kind, a.mode, a.angles) == (kind, mode, angles)]
        key = ".".join(("forms", kind, mode, angles or "none"))
        down = "ternary" if kind == "ternary-down" else {"f32": "float", "int8": "int8"}[mode]
        what = f"{mode}, W_down {down}, {f'{angles} angles' if angles else 'angles not rounded'}"
        values = {a.seed: a.accuracy for a in some}
        measured, why = statistics.fmean(values.values()), _by_seed(values)
        rows.append(Row(key, what, "% right", None, None, None, why, measured))
    note = (
        "The models of digits, compiled; those with a ternary W_down were trained with it. Means "
        "over seeds of percent right of the 360 test images, of which one is 0.28."
    )
    return Table("forms", "Smaller forms of trained models: accuracy", note, tuple(rows))


def text_table(outcomes: Sequence[Outcome]) -> Table:
    """Perplexity of the language models at equal steps, and Butterfly's distance from others."""
    compared = [outcome for outcome in outcomes if outcome.kind in COMPARED]
    kinds, figure, unit = _kinds(compared), "perplexity_per_byte", "perplexity a byte"
    rows = [_row(f"text.{kind}", kind, unit, compared, figure) for kind in kinds]
    rows += _leads("text", unit, compared, figure, kinds)
    if compared:
        bits = compared[0].figures["ngram_bits_per_byte"]
        why = f"Kneser-Ney, three bytes of context, of all the training text; {bits:.4f} bits."
        rows.append(Row("text.ngram", "n-gram model", unit, None, None, None, why, 2**bits))
    note = (
        "Decoders of 2 layers, d = 256, F = 512, 8 experts, top-2, over bytes of Python's own "
        "library, files apart; all held-out text in windows of 256 bytes that overlap by half. "
        "Means over seeds; less is better. ButterflyMoE's own perplexities are of other text."
    )
    return Table("text", "Language models: perplexity", note, tuple(rows))


def ablations_table(outcomes: Sequence[Outcome]) -> Table:
    """Perplexity of the language models that differ from ``reference`` in one choice."""
    others = [outcome for outcome in outcomes if outcome.kind not in COMPARED]
    unit, figure = "perplexity a byte", "perplexity_per_byte"
    rows = [_row(f"ablations.{kind}", kind, unit, others, figure) for kind in _kinds(others)]
    note = (
        "As the table before, at a third of the steps; the first is what the others differ from in "
        "one choice."
    )
    return Table("ablations", "Language models: ablations", note, tuple(rows))


def _kinds(outcomes: Iterable[Outcome]) -> list[str]:
    return list(dict.fromkeys(outcome.kind for outcome in outcomes))


def values_of(outcomes: Sequence[Outcome], kind: str, figure: str) -> dict[int, float]:
    """A figure of each trained model of that kind, by seed."""
    return {each.seed: each.figures[figure] for each in outcomes if each.kind == kind}


def _row(key: str, kind: str, unit: str, outcomes: Sequence[Outcome], figure: str) -> Row:
    values = values_of(outcomes, kind, figure)
    first = next(outcome for outcome in outcomes if outcome.kind == kind)
    why = f"{_by_seed(values)} {first.parameters:,} parameters."
    return Row(key, NAMES[kind], unit, None, None, None, why, statistics.fmean(values.values()))


def _leads(
    data: str, unit: str, outcomes: Sequence[Outcome], figure: str, kinds: Sequence[str]
) -> list[Row]:
    """By how much Butterfly is above each other kind, on average over the seeds that both have."""
    rows, ours = [], values_of(outcomes, "butterfly", figure)
    for kind in kinds:
        other = values_of(outcomes, kind, figure)
        gaps = {seed: ours[seed] - other[seed] for seed in ours if seed in other}
        if kind != "butterfly" and gaps:
            key, what = f"{data}.lead.{kind}", f"Butterfly above: {NAMES[kind]}"
            mean = statistics.fmean(gaps.values())
            rows.append(Row(key, what, unit, None, None, None, _by_seed(gaps), mean))
    return rows


def _by_seed(values: dict[int, float]) -> str:
    """The values of each seed and their standard deviation, as a sentence."""
    numbers = [f"{value:.4g}" for _, value in sorted(values.items())]
    if len(numbers) == 1:
        return "One seed."
    deviation = statistics.stdev(values.values())
    return f"Seeds: {', '.join(numbers)}; standard deviation {deviation:.2g}."
