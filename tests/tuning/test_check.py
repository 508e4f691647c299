"""Ways of a GPU's kernels are compiled where no GPU is, and nothing is measured."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from butterflyc.bench.gpu.device import launches_of
from butterflyc.cli._tuning import show_checked
from butterflyc.cli.app import run
from butterflyc.compiler.errors import UsageError
from butterflyc.compiler.run.sass import Resources
from butterflyc.kernels.gpu.launch import Gpu
from butterflyc.targets import cuda
from butterflyc.targets.registry import load_core
from butterflyc.tuning.check import Checked, _checked, check
from butterflyc.tuning.meter_gpu import planned

from .small import ONE_LAYER, X, calls, net

ASKED = f"tune {ONE_LAYER} --target cuda-sm90 --mode f16 --check --budget 1"


def checked(**changes: object) -> Checked:
    (call,) = calls("cuda-sm90", "f16")
    return attrs.evolve(Checked(call, call.ways[1], 64, 2048, 0, 8), **changes)


def test_what_the_code_of_ways_takes() -> None:
    """The default way first, as many as there is a budget for."""
    (call,) = calls("cuda-sm90", "f16")
    default, other = check(net(), (X,), target="cuda-sm90", mode="f16", budget="2")
    assert (default.is_default, other.is_default) == (True, False)
    assert (default.call.key, default.way) == (call.key, call.ways[0])
    for each in (default, other):
        assert each.fault == ""
        assert 16 < each.registers <= 255
        assert each.tensor_core > 0
        assert 0 < each.shared <= cuda.machine(load_core("cuda-sm90")).lanes.shared_bytes


def test_what_does_not_fit_or_does_not_compile_has_a_fault() -> None:
    """A block that asks for more than there is, and what the compiler says."""
    (call,) = calls("cuda-sm90", "f16")
    launches = launches_of(planned(call.spec, call.ways[0], Gpu()).plan)
    uses = {launch.symbol: Resources(200, 0, 0, {"LDL": 2, "HMMA": 5}) for launch in launches}
    found = {launch.symbol: SimpleNamespace(shared=1 << 20) for launch in launches}
    codes: Any = SimpleNamespace(uses=uses, found=found)
    over = _checked(call, call.ways[0], launches, codes, {}, Gpu())
    assert (over.registers, over.spills, over.tensor_core) == (200, 2, 5 * len(launches))
    assert over.fault == "asks for 1,048,576 bytes of shared memory, a block has 232,448"
    failed = {launches[0].symbol: "out of resource"}
    refused = _checked(call, call.ways[0], launches, codes, failed, Gpu())
    assert (refused.fault, refused.registers) == ("out of resource", 0)


def test_what_is_measured_anywhere_is_not_checked() -> None:
    """With what to do."""
    with pytest.raises(UsageError, match="host is no GPU"):
        check(net(), (X,), target="host")


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """A line a way, and how many of them are fine."""
    show_checked([checked(), checked(spills=3), checked(fault="out of resource")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[-5:] == ["64", "2.00", "KiB", "0", "8"]
    assert lines[3].endswith("out of resource")
    assert lines[4] == "1 of 3 ways compile, fit and spill nothing"
    assert "nothing was measured" in lines[5]
    show_checked([])
    assert "no kernel of this model" in capsys.readouterr().out


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON, with the call, the way, and what its code takes."""
    assert run([*ASKED.split(), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "butterflyc.check/1"
    (way,) = document["ways"]
    assert way["call"].startswith("butterfly_layer(")
    assert (way["default"], way["spills"], way["fault"]) == (True, 0, "")


def test_the_command_fails_with_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since that is what `compile` would take."""
    (call,) = calls("cuda-sm90", "f16")
    fine, bad = checked(), checked(fault="out of resource")
    for found, status in (
        ([fine, bad], 0),
        ([attrs.evolve(bad, way=call.ways[0])], 7),
    ):
        monkeypatch.setattr("butterflyc.tuning.check.check", lambda *_, found=found, **__: found)
        assert run(ASKED.split()) == status
