"""The report for people: ``README.md`` of the folder that ``butterflyc paper`` writes."""

from __future__ import annotations

from collections.abc import Sequence

from .rows import Row, Table

HEAD = """\
# The papers' tables and figures

[ButterflyMoE](https://arxiv.org/abs/2601.13563) and
[ButterflyViT](https://arxiv.org/abs/2603.06746), figure by figure. Written by `butterflyc paper`;
the same rows are in `paper.json`.

- **paper**: as printed; — where it prints nothing, or its digits are not known to us.
- **formula**: what the paper's formula gives, in the form of its digits; — where there is none.
- **measured**: of compiled artefacts, of trained models, of our modules, as each table says;
  experts and activations of {model}. — where nothing was measured.
- **why**: why the three differ, or what they count.
"""
COLUMNS = ("what", "unit", "paper", "formula", "measured", "why")


def markdown(tables: Sequence[Table], model: str) -> str:
    """All tables with their pictures. ``model``: what was measured, as it stands in a sentence."""
    return "\n".join([HEAD.format(model=model), *(_table(table) for table in tables)])


def number(value: float) -> str:
    """A measured value: whole ones in full, others in four significant digits."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def _table(table: Table) -> str:
    lines = [f"## {table.title}", "", table.note, ""]
    if table.picture:
        lines += [f"![{table.title}]({table.picture})", ""]
    lines += [_line(COLUMNS), _line(("---", "---", "---:", "---:", "---:", "---"))]
    lines += [_line(_cells(row)) for row in table.rows]
    return "\n".join([*lines, ""])


def _cells(row: Row) -> tuple[str, ...]:
    measured = None if row.measured is None else number(row.measured)
    values = (value or "—" for value in (row.paper, row.shown, measured))
    return (row.what, row.unit, *values, row.why)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
