"""Training curves of the models of digits and of text, as one picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..models.recipes import COMPARED
from ..models.series import Outcome
from .drawing import BLUE, GREEN, GREY, ORANGE, RED, SKY, new_figure, png, style
from .trained import NAMES, Trained

COLOURS = {
    "butterfly": BLUE,
    "standard": RED,
    "dense": GREY,
    "ternary-down": GREEN,
    "no-smoothness": ORANGE,
    "papers-start": SKY,
}


class Panel(NamedTuple):
    """What is drawn side by side: a figure of some outcomes by epoch, and what stands around it."""

    outcomes: Sequence[Outcome]
    figure: str
    title: str
    unit: str
    epochs: str = "epoch"


class Summary(NamedTuple):
    """What is drawn of one kind: by epoch the mean over seeds, and the band around it."""

    epochs: list[float]
    means: list[float]
    least: list[float]
    most: list[float]


def panels(trained: Trained) -> list[Panel]:
    """A panel for each kind of outcome that is there; ablations have none."""
    compared = [outcome for outcome in trained.text if outcome.kind in COMPARED]
    every = (
        Panel(trained.cifar100, "accuracy", "CIFAR-100", "% of 10,000 test images"),
        Panel(trained.digits, "accuracy", "Digits", "% of 360 test images"),
        Panel(compared, "bits_per_byte", "Text", "bits per held-out byte", "epoch of 100 steps"),
    )
    return [panel for panel in every if panel.outcomes]


def curves_picture(drawn: Sequence[Panel]) -> bytes:
    """Accuracy on images and bits per byte of text by epoch: means, and from least to most.

    Raises ToolMissing without matplotlib.
    """
    with style():
        figure, places = new_figure(6.4 * len(drawn), 4.6, columns=len(drawn))
        for axes, panel in zip(places, drawn, strict=True):
            _draw(axes, panel)
        return png(figure)


def points(outcome: Outcome, figure: str) -> tuple[list[float], list[float]]:
    """Epochs at which a figure was measured, and the figure; the last is of the whole test set."""
    known = [point for point in outcome.curve if figure in point]
    epochs = [*(point["epoch"] for point in known), len(outcome.curve)]
    return epochs, [*(point[figure] for point in known), outcome.figures[figure]]


def summary(outcomes: Sequence[Outcome], figure: str) -> Summary:
    """Mean, least and most of a figure over outcomes that were measured at the same epochs."""
    lines = [points(outcome, figure) for outcome in outcomes]
    each = list(zip(*(values for _, values in lines), strict=True))
    means = [statistics.fmean(values) for values in each]
    return Summary(lines[0][0], means, [min(v) for v in each], [max(v) for v in each])


def _draw(axes: Any, panel: Panel) -> None:
    for kind in dict.fromkeys(outcome.kind for outcome in panel.outcomes):
        same = [outcome for outcome in panel.outcomes if outcome.kind == kind]
        epochs, means, least, most = summary(same, panel.figure)
        axes.fill_between(epochs, least, most, color=COLOURS[kind], alpha=0.12, linewidth=0)
        axes.plot(epochs, means, color=COLOURS[kind], linewidth=1.4, label=NAMES[kind])
    axes.grid(True)
    axes.legend(frameon=False)
    axes.set(title=panel.title, xlabel=panel.epochs, ylabel=panel.unit)
