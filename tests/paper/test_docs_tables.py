"""The manual's figures of trained models are the shipped outcomes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from butterflyc.models.series import Outcome
from butterflyc.paper.trained import NAMES, read, values_of

DOCS = Path(__file__).parents[2] / "docs"


def spread(values: Iterable[float], digits: int) -> str:
    """The mean, and the standard deviation where there are several."""
    numbers = list(values)
    mean = f"{statistics.fmean(numbers):.{digits}f}"
    return mean if len(numbers) == 1 else f"{mean} ± {statistics.stdev(numbers):.{digits}f}"


def line(outcomes: Sequence[Outcome], kind: str, figures: dict[str, int]) -> str:
    """A row of a table: name, parameters, seeds, and each figure with so many digits."""
    values = {figure: values_of(outcomes, kind, figure).values() for figure in figures}
    first = next(outcome for outcome in outcomes if outcome.kind == kind)
    seeds = sum(outcome.kind == kind for outcome in outcomes)
    cells = [NAMES[kind], f"{first.parameters:,}", str(seeds)]
    cells += [spread(values[figure], digits) for figure, digits in figures.items()]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize(
    ("page", "data", "figures"),
    [
        ("papers.md", "digits", {"accuracy": 2}),
        ("language_models.md", "text", {"bits_per_byte": 3, "perplexity_per_byte": 3}),
    ],
)
def test_trained_models(page: str, data: str, figures: dict[str, int]) -> None:
    """Each kind has one row, in the order of the outcomes."""
    outcomes = getattr(read(), data)
    assert outcomes
    kinds = dict.fromkeys(outcome.kind for outcome in outcomes)
    wanted = [line(outcomes, kind, figures) for kind in kinds]
    written = (DOCS / page).read_text().splitlines()
    assert [row for row in written if row in wanted] == wanted, "\n".join(wanted)


def test_forms_of_models_of_digits() -> None:
    """Each form has one row: both kinds of W_down, by their means over seeds."""
    accuracies = read().forms
    assert accuracies
    wanted = []
    for mode, angles in dict.fromkeys((each.mode, each.angles) for each in accuracies):
        cells = [mode, angles or "as trained"]
        for kind in ("butterfly", "ternary-down"):
            form = kind, mode, angles
            same = [each for each in accuracies if (each.kind, each.mode, each.angles) == form]
            cells.append(spread((each.accuracy for each in same), 2))
        wanted.append(f"| {' | '.join(cells)} |")
    written = (DOCS / "papers.md").read_text().splitlines()
    assert [row for row in written if row in wanted] == wanted, "\n".join(wanted)
