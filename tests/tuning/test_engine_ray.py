"""Measurements on a cluster are those of this machine, and times are refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import butterflyc as bc
from butterflyc.compiler.errors import Incompatible, ToolMissing, UsageError
from butterflyc.targets.registry import load_core
from butterflyc.tuning.engine_ray import Cluster, check_address

CORE = load_core("rv32imc")
TOOLS = "qemu-system-riscv32", "riscv64-unknown-elf-gcc"


@pytest.mark.parametrize("address", ["here", "ray:", "raylet", "http://host:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    """With those that are."""
    with pytest.raises(UsageError, match=f"no engine '{address}'") as error:
        check_address(address, alone=False)
    assert "ray://HOST:PORT" in str(error.value.help)


def test_times_are_of_one_machine() -> None:
    """A cluster counts, and does not time."""
    check_address("ray", alone=False)
    with pytest.raises(UsageError, match="times are measured on this machine alone"):
        check_address("ray", alone=True)


def test_a_missing_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ToolMissing, match="Ray is not installed") as error:
        Cluster(CORE, "ray", 10.0, "")
    assert "butterflyc[ray]" in str(error.value.help)


@pytest.mark.slow
def test_a_cluster_measures_what_this_machine_does(
    tmp_path: Path, needs_tool: Callable[..., str]
) -> None:
    """A cluster on this machine gives the same trials as processes do."""
    for tool in TOOLS:
        needs_tool(tool)
    model = str(Path(__file__).parents[2] / "models" / "digits.safetensors")
    best = {}
    for engine in ("local", "ray"):
        report = bc.tune(
            model,
            target="rv32imc",
            budget="4",
            only="quantized_ternary",
            engine=engine,
            database=tmp_path / f"{engine}.sqlite",
        )
        assert report.new_trials == 4
        best[engine] = {trial.way: trial.value for each in report.found for trial in each.trials}
    # With several at once the search may take another way for its fourth.
    same = best["local"].keys() & best["ray"].keys()
    assert len(same) >= 3
    assert all(best["local"][way] == best["ray"][way] for way in same)


@pytest.mark.slow
def test_a_cluster_of_other_tools_is_refused(needs_tool: Callable[..., str]) -> None:
    """Figures of two compilers cannot be compared."""
    for tool in TOOLS:
        needs_tool(tool)
    with pytest.raises(Incompatible, match="this one with gcc 1: their figures"):
        Cluster(CORE, "ray", 10.0, "gcc 1")
