"""Figure 6 from placements: rows of budgets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from butterflyc.paper import boards
from butterflyc.paper.devices import figure_6


def test_every_budget_has_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts of each device; of boards their SRAM, and what is missing where none fit."""
    asked: list[tuple[str, Any]] = []

    def budget(core: str, **options: Any) -> SimpleNamespace:
        asked.append((core, options["memory"]))
        fits = core != "nrf52840"
        shares = {
            "flash": SimpleNamespace(left=5 if fits else -1000),
            "sram": SimpleNamespace(used=65_000),
        }
        return SimpleNamespace(experts=170 if fits else 0, memory=shares.get)

    monkeypatch.setattr(boards, "experts_that_fit", budget)
    measured = boards.measured_experts()
    assert set(measured) <= {row.key for row in figure_6().rows}
    assert measured["figure6.esp32s3.flash"] == 170
    assert measured["figure6.nrf52840.missing"] == 1000
    assert measured["figure6.esp32s3.sram"] == 65_000
    assert asked[0] == ("cortex-a76", 8 << 30)
    assert ("esp32s3", None) in asked
