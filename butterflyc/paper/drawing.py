"""What the pictures of the report share: colours, style, and how they become PNG bytes."""

from __future__ import annotations

import io
from typing import Any

from ..compiler.errors import ToolMissing

# Okabe and Ito's colours, which people tell apart whose eyes lack one kind of cone.
ORANGE, SKY, GREEN, BLUE, RED, GREY = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#666666",
)
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "figure.dpi": 130,
}


def matplotlib() -> Any:
    """The package that draws. Raises ToolMissing where it is not installed."""
    try:
        import matplotlib as package
    except ImportError as error:
        raise ToolMissing(
            "matplotlib is not installed, which draws pictures",
            help="pip install 'butterflyc[train]'",
        ) from error
    return package


def style() -> Any:
    """The style as a context. Raises ToolMissing without matplotlib."""
    return matplotlib().rc_context(STYLE)


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """A figure of that many inches, and its axes side by side: [columns]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def label_line(axes: Any, x: float, y: float, name: str, colour: str) -> None:
    """Write the name of a line beside its last point."""
    axes.annotate(
        name, (x, y), xytext=(8, 0), textcoords="offset points", va="center", color=colour
    )


def png(figure: Any) -> bytes:
    """The figure as PNG; the same figure makes the same bytes."""
    content = io.BytesIO()
    # Without the name of the program, which has its version.
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
