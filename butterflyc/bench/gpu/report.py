"""What was found, for people: tables on stdout, and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...cli._output import print_line, print_table
from .document import rows_of

STANDARD, EAGER = "fastest standard (", "fastest eager butterfly ("
WITH_ROUTING = "fastest standard, both with routing ("
AGAIN = "the same again ("


def show(data: Mapping[str, Any]) -> None:
    """Ceilings, a line for each point, and what failed."""
    if data["rehearsal"]:
        print_line("A rehearsal: every call counts as a second, and no figure is a measurement.")
    print_line(f"{data['device']}, {data['dtype']}, {data['started']}")
    _show_ceilings(data["ceilings"])
    if data["points"]:
        print_table([HEADER, *(_cells(point) for point in data["points"])])
    faults, missed = data["faults"], data["not_measured"]
    for line in faults:
        print_line(f"FAULT {line}")
    if missed:
        print_line(f"not measured, for lack of time: {'; '.join(missed)}")
    sure = [row for row in rows_of(data) if row["target_ratio"] is not None]
    met = [row for row in sure if row["ratio"] >= row["target_ratio"]]
    print_line(f"{len(met)} of {len(sure)} targets met; {len(faults)} faults")


HEADER = (
    "d", "E", "T", "routing", "ours", "us", "against", "us", "times", "wanted", "",
    "routed", "eager", "spread",
)  # fmt: skip


def _show_ceilings(found: Mapping[str, Any]) -> None:
    if not found:
        return
    products = ", ".join(
        f"{name} {rate / 1e12:.0f}" for name, rate in found["products_a_second"].items()
    )
    nodes = ", ".join(f"{n}: {s * 1e6:.2f}" for n, s in found["node_seconds"].items())
    print_line(
        f"copy {found['copy_bytes_a_second'] / 1e12:.2f} TB/s; products {products} "
        f"T multiply-adds/s; us of graphs by nodes {nodes}"
    )


def _find(point: Mapping[str, Any], start: str) -> Mapping[str, Any] | None:
    return next((row for row in point["rows"] if row["baseline"].startswith(start)), None)


def _cells(point: Mapping[str, Any]) -> tuple[str, ...]:
    """One point as a line; empty cells where there is no figure."""
    row = _find(point, STANDARD)
    where = str(point["d"]), str(point["E"]), str(point["T"]), point["routing"]
    if point["compiled"]:
        where = (*where[:3], f"{where[3]} compiled")
    others = (_ratio(point, start) for start in (WITH_ROUTING, EAGER))
    again = _find(point, AGAIN)
    spread = f"{abs(again['ratio'] - 1):.1%}" if again else ""
    if row is None:
        return (*where, *[""] * 7, *others, spread)
    goal = row["target_ratio"]
    verdict = "" if goal is None else "ok" if row["ratio"] >= goal else "below"
    against = row["baseline"].removeprefix(STANDARD).removesuffix(")")
    theirs = point["figures"][against]["p50_us"]
    numbers = f"{row['value']:.1f}", against.removeprefix("standard "), f"{theirs:.1f}"
    wanted = "" if goal is None else f"{goal:g}"
    return (*where, row["name"], *numbers, f"{row['ratio']:.2f}", wanted, verdict, *others, spread)


def _ratio(point: Mapping[str, Any], start: str) -> str:
    row = _find(point, start)
    return f"{row['ratio']:.2f}" if row else ""


def plot(data: Mapping[str, Any], path: Path) -> bool:
    """Times as fast as the fastest standard mixture by T, a line for each d and E.

    False, and no file, without matplotlib or without points.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    lines: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for point in data["points"]:
        row = _find(point, STANDARD)
        if row is not None and point["routing"] == "uniform" and not point["compiled"]:
            place = point["d"], point["E"]
            lines.setdefault(place, []).append((point["T"], row["ratio"]))
    if not lines:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for (d, experts), places in sorted(lines.items()):
        axes.plot(*zip(*sorted(places), strict=True), marker="o", label=f"d={d} E={experts}")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("tokens")
    axes.set_ylabel("times as fast as the fastest standard mixture")
    axes.set_title(f"{data['device']}, {data['dtype']}" + " (rehearsal)" * data["rehearsal"])
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True
