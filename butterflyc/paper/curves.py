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
    """Accuracy on digits and bits per byte of text by epoch, a line for each seed.

    Raises ToolMissing without matplotlib.
    """
    with style():
        figure, (digits, text) = new_figure(12.0, 4.6, columns=2)
        _panel(digits, trained.digits, "accuracy")
        digits.set(title="Digits: percent right", xlabel="epoch", ylabel="% of 360 test images")
        compared = [outcome for outcome in trained.text if outcome.kind in COMPARED]
        _panel(text, compared, "bits_per_byte")
        text.set(title="Text: bits per byte", xlabel="epoch of 100 steps", ylabel="held-out text")
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
    if outcomes:
        axes.legend(frameon=False)
