"""How ``inspect`` shows what a model is predicted to take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..compiler.errors import UsageError
from ..instructions import instructions_rows, instructions_text
from ._output import print_columns, print_line

if TYPE_CHECKING:
    from ..program import Program


def instructions(program: Program) -> dict[str, Any]:
    """The prediction. Raises UsageError for a program that has none."""
    found = (program.placement or {}).get("instructions")
    if found is None:
        raise UsageError(
            f"{program.name} has no prediction of instructions: its target is {program.target}",
            help="compile for a microcontroller; what an older version compiled, once more",
        )
    return dict(found)


def show_instructions(data: Mapping[str, Any]) -> None:
    """The total, the time, and the costliest steps."""
    print_line(instructions_text(data))
    if data["total"] is not None:
        print_columns(instructions_rows(data))
