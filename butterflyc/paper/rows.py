"""What a table of the report is made of: rows of printed, computed and measured values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..compiler.errors import unknown_name

SCHEMA = "butterflyc.paper/1"

Measured = Mapping[str, float]
"""Measurements by the keys of their rows, in the units of these rows."""


@dataclass(frozen=True)
class Row:
    """One claim. ``why``: why the values differ, or what each of them is.

    ``paper``: as printed; None where the paper's digits are not known to us, or it prints none.
    ``formula``: what the paper's formula gives, ``shown`` the same in the form of the paper's
    digits; None where there is no formula. ``measured``: of an artefact or a trained model; None
    where nothing was measured.
    """

    key: str
    what: str
    unit: str
    paper: str | None
    formula: float | None
    shown: str | None
    why: str
    measured: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows that belong together. ``picture``: the file that shows them; ``note``: Markdown."""

    key: str
    title: str
    note: str
    rows: tuple[Row, ...]
    picture: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The table as plain data."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows]}


def with_measured(tables: Sequence[Table], measured: Measured) -> tuple[Table, ...]:
    """The tables with ``measured`` in their rows. UnknownName for a key that no row has."""
    keys = {row.key for table in tables for row in table.rows}
    for key in measured:
        if key not in keys:
            raise unknown_name("row of the report", key, keys)
    return tuple(
        replace(
            table,
            rows=tuple(
                replace(row, measured=measured.get(row.key, row.measured)) for row in table.rows
            ),
        )
        for table in tables
    )
