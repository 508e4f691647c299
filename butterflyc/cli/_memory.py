"""How commands show what goes where on a board."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ._output import print_columns


def show_placement(report: Mapping[str, Any], whole: bool = False) -> None:
    """The memories and the peak of the arena; of the ``whole`` also the weights and the peak."""
    from ..report import experts_text, memory_rows, peak_text

    print_columns(memory_rows(report))
    for warning in report["warnings"]:
        click.echo(f"warning: {warning}")
    click.echo(f"arena: {peak_text(report['arena'])}")
    if experts := experts_text(report["experts"]):
        click.echo(f"experts: {experts}")
    if not whole:
        return
    for key in ("kind", "layer"):
        click.echo()
        sizes = report["weights"][f"by_{key}"]
        print_columns([(f"weights by {key}", "bytes"), *((n, f"{sizes[n]:,}") for n in sizes)])
    if peak := report["arena"]["peak"]:
        click.echo()
        held = [(b["name"], f"{b['bytes']:,}", b["source"]) for b in peak["buffers"]]
        print_columns([("alive at the peak", "bytes", "source"), *held])
