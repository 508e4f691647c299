"""Instruction counts that were measured before, by machine and compiler."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from butterflyc.compiler.run.bare_metal import compiler_version

COUNTS = Path(__file__).parent / "golden" / "instructions.json"
SLACK = 0.01


@pytest.fixture
def counted(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Callable[[str, str, float], None]:
    """``counted(machine, what, count)``: within 1 % of what this compiler's code took before.

    What another compiler makes is reported, and held against nothing. ``--update-golden`` writes
    it down.
    """
    update = request.config.getoption("--update-golden")

    def compare(machine: str, what: str, count: float) -> None:
        compiler = compiler_version(machine)
        record_property(f"{machine}, {compiler}: {what}", count)
        known = json.loads(COUNTS.read_text()) if COUNTS.is_file() else {}
        ours = known.setdefault(machine, {}).setdefault(compiler, {})
        if update:
            ours[what] = count
            COUNTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        elif what not in ours:
            warnings.warn(f"{what} on {machine} by {compiler}: {count} instructions", stacklevel=2)
        else:
            change = count / ours[what] - 1
            assert abs(change) <= SLACK, f"{what} on {machine}: {count}, {change:+.2%}"

    return compare
