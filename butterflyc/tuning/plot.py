"""A picture of a search: how the best way of each kernel became better, trial by trial."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compiler.errors import CannotWrite, ToolMissing, UsageError

if TYPE_CHECKING:
    from .report import Report

SUFFIXES = (".svg", ".png")
# Pictures of the same trials are the same files.
PLAIN = {".svg": {"Date": None}, ".png": {"Software": None}}


def check_picture(path: Path) -> None:
    """Raises UsageError for a file that is neither .svg nor .png, ToolMissing without matplotlib.

    Before anything is measured, since that takes long.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} is no picture", help=f"name it {' or '.join(SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401  (whether it is there)
    except ImportError as error:
        raise ToolMissing(
            "matplotlib is not installed, which draws pictures", help="pip install matplotlib"
        ) from error


def write_plot(report: Report, path: Path) -> None:
    """Writes ``path``: of each kernel the best figure so far, over that of the default way.

    Raises what `check_picture` does, and CannotWrite.
    """
    check_picture(path)
    import matplotlib

    matplotlib.use("Agg")
    # Names of parts of an SVG are drawn at random otherwise.
    with matplotlib.rc_context({"svg.hashsalt": "butterflyc"}):
        figure = _figure(report)
        try:
            figure.savefig(path, metadata=PLAIN[path.suffix])
        except OSError as error:
            raise CannotWrite(f"cannot write {path}: {error.strerror or error}") from error


def _figure(report: Report) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for each in report.found:
        default, best = each.default, each.best_so_far
        if default is None or not default.value or not best:
            continue
        shares = [value / default.value for value in best]
        name = f"{each.call.spec.op} ({each.call.nodes[0]})"
        axes.step(range(1, len(shares) + 1), shares, where="post", label=name)
    axes.set(
        xlabel="trial",
        ylabel=f"best {report.method} so far, of that of the default way",
        title=f"kernels for {report.target}",
    )
    if axes.lines:
        axes.legend(fontsize="small")
    return figure
