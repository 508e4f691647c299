"""How commands print: one JSON document, or lines in columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

import click

SCHEMA_VERSION = 1


def print_json(kind: str, data: Mapping[str, Any]) -> None:
    """One document on stdout; ``schema`` says what it is: ``butterflyc.KIND/1``."""
    document = {"schema": f"butterflyc.{kind}/{SCHEMA_VERSION}", **data}
    click.echo(json.dumps(document, indent=2))


def print_line(text: str, file: TextIO | None = None) -> None:
    """One line on stdout, or into ``file``."""
    click.echo(text, file=file)


def print_table(
    rows: Sequence[Sequence[object]],
    file: TextIO | None = None,
    *,
    indent: str = "",
    header: bool = True,
) -> None:
    """Rows as a table: on a terminal long cells are wrapped, elsewhere each row is one line.

    The first row is the ``header``, if there is one.
    """
    from rich.console import Console

    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        print_columns(rows, indent, file)
        return
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=header, padding=(0, 2, 0, 0), header_style="bold")
    for cell in rows[0]:
        table.add_column(str(cell) if header else "", overflow="fold")
    for row in rows[header:]:
        # Text: a cell such as [16, 32] is no markup.
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(Padding(table, (0, 0, 0, len(indent))))


def print_columns(
    rows: Iterable[Sequence[object]], indent: str = "", file: TextIO | None = None
) -> None:
    """Rows in columns as wide as their widest cell; plain text, so that it can be piped."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(indent + line.rstrip(), file=file)


def bytes_text(count: int) -> str:
    """A size for people: ``1.50 KiB`` (exact figures are in ``--json``)."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{count} B" if unit == "B" else f"{size:.2f} {unit}"
