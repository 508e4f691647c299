"""How commands print: one JSON document, or lines in columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

SCHEMA_VERSION = 1


def print_json(kind: str, data: Mapping[str, Any]) -> None:
    """One document on stdout; ``schema`` says what it is: ``butterflyc.KIND/1``."""
    document = {"schema": f"butterflyc.{kind}/{SCHEMA_VERSION}", **data}
    click.echo(json.dumps(document, indent=2))


def print_columns(rows: Iterable[Sequence[object]], indent: str = "") -> None:
    """Rows in columns as wide as their widest cell; plain text, so that it can be piped."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(indent + line.rstrip())


def bytes_text(count: int) -> str:
    """A size for people: ``1.50 KiB`` (exact figures are in ``--json``)."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{count} B" if unit == "B" else f"{size:.2f} {unit}"
