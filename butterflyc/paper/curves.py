"""Training curves of the models of digits and of text, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def curves_picture(trained: Trained) -> bytes:
    """Accuracy on images and bits per byte of text by epoch, a line for each seed.

    Only what there are outcomes of is drawn. Raises ToolMissing without matplotlib.
    """
    compared = [outcome for outcome in trained.text if outcome.kind in COMPARED]
    every = (
        (trained.cifar100, "accuracy", "CIFAR-100", "% of 10,000 test images", "epoch"),
        (trained.digits, "accuracy", "Digits", "% of 360 test images", "epoch"),
        (compared, "bits_per_byte", "Text", "bits per held-out byte", "epoch of 100 steps"),
    )
    panels = [panel for panel in every if panel[0]]
    with style():
        figure, axes = new_figure(6.4 * len(panels), 4.6, columns=len(panels))
        for place, (outcomes, name, title, unit, epochs) in zip(axes, panels, strict=True):
            _panel(place, outcomes, name)
            place.set(title=title, xlabel=epochs, ylabel=unit)
        return png(figure)


def points(outcome: Outcome, figure: str) -> tuple[list[float], list[float]]:
    """Epochs at which a figure was measured, and the figure; the last is of the whole test set."""
    known = [point for point in outcome.curve if figure in point]
    epochs = [*(point["epoch"] for point in known), len(outcome.curve)]
    return epochs, [*(point[figure] for point in known), outcome.figures[figure]]


def _panel(axes: Any, outcomes: Sequence[Outcome], figure: str) -> None:
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        colour, name = COLOURS[kind], NAMES[kind]
        for outcome in outcomes:
            if outcome.kind == kind:
                axes.plot(*points(outcome, figure), color=colour, linewidth=1.4, label=name)
                name = "_nolegend_"
    axes.grid(True)
    axes.legend(frameon=False)
