"""Kernels of GPUs keep to registers and use tensor cores, in every configuration that is shipped.

What the table says of them is checked in seconds; that Triton makes such code takes compiling.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

triton = pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
# One kernel of so many is compiled: all were, by the script, from the code that is here.
SAMPLE = 24


@cache
def script() -> ModuleType:
    spec = spec_from_file_location("gpu_resources", ROOT / "benchmarks" / "gpu_resources.py")
    assert spec is not None, "the script is there"
    assert spec.loader is not None, "it is Python"
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(script().RESULTS.read_text())
    return found


def of(capability: int) -> dict[str, dict[str, Any]]:
    """What the table says of kernels for a GPU, by their symbols."""
    name = str(capability)
    return {row["symbol"]: row["on"][name] for row in results()["rows"] if name in row["on"]}


def check(capability: int, asked: dict[str, Any]) -> None:
    """Compiled, these have no faults, and use what the table says if it is of this Triton."""
    launches = {symbol: one.launch for symbol, one in asked.items()}
    uses = script().measured(launches, capability)
    gpu = script().gpu_of(capability)
    wrong = {s: script().faults(one, uses[s], gpu) for s, one in asked.items()}
    assert {s: found for s, found in wrong.items() if found} == {}
    if results()["triton"] == triton.__version__ and capability in results()["capabilities"]:
        said = of(capability)
        assert {s: said[s] for s in uses if s in said} == {s: uses[s] for s in uses if s in said}


@pytest.mark.parametrize("capability", [75, 80, 87, 89, 90])
def test_the_table_has_all_that_is_shipped(capability):
    """No kernel that is shipped is missing from the table, and none in it spills or is too big."""
    gpu, said = script().gpu_of(capability), of(capability)
    asked = script().asked(gpu, capability not in script().THOROUGH)
    assert said.keys() == asked.keys(), "run benchmarks/gpu_resources.py"
    wrong = {s: script().faults(one, said[s], gpu) for s, one in asked.items()}
    assert {s: found for s, found in wrong.items() if found} == {}


def test_the_table_is_of_this_code():
    """No kernel has changed since it was measured."""
    assert results()["sources"] == script().sources(), "run benchmarks/gpu_resources.py"


def test_the_page_shows_the_table():
    """The table of the page is the one that --table writes."""
    page = script().PAGE.read_text()
    assert script().with_table(page, results()) == page, "run benchmarks/gpu_resources.py --table"


@pytest.mark.parametrize("capability", [80, 90])
def test_default_ways(capability):
    """Of 256 and 1024 channels, what is taken without tuning neither spills nor idles."""
    sizes = script().Sizes(((256, 1024), (1024, 4096)), (32, 4096), script().ROWS[:1], None)
    asked = script().asked(script().gpu_of(capability), True, sizes)
    check(capability, {s: one for s, one in asked.items() if one.launch.function in products()})


def products() -> tuple[str, ...]:
    names: tuple[str, ...] = script().PRODUCTS
    return names


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 87, 89, 90])
def test_some_ways(capability):
    """Of configurations that are shipped, these neither spill nor leave tensor cores idle."""
    asked = script().asked(script().gpu_of(capability), capability not in script().THOROUGH)
    check(capability, dict(list(asked.items())[::SAMPLE]))


@pytest.mark.slow
@pytest.mark.parametrize("capability", [86, 100, 120])
def test_gpus_that_the_table_leaves_out(capability):
    """Of 256 and 1024 channels, few tokens and many, what is taken without tuning is as good."""
    widths = ((256, 1024), (1024, 4096))
    sizes = script().Sizes(widths, (8, 4096), script().ROWS[:2], None, widths)
    check(capability, script().asked(script().gpu_of(capability), True, sizes))


def test_faults_are_told():
    """A kernel that spills, is too big for its GPU, or has no tensor cores is told, each time."""
    gpu = script().gpu_of(80)
    kernels = script().asked(gpu, True, script().Sizes(((256, 1024),), (4096,), one_and_four=None))
    one = next(k for k in kernels.values() if k.launch.function == "up_prefill")
    good = {"stack": 0, "spills": 0, "shared": 0, "tensor_cores": {"HMMA": 1}}
    assert script().faults(one, good, gpu) == []
    bad = {"stack": 8, "spills": 2, "shared": 1 << 20, "tensor_cores": {}}
    assert script().faults(one, bad, gpu) == [
        "spills: 8 bytes, 2 instructions",
        f"asks for {1 << 20} bytes, the GPU has {gpu.shared_bytes}",
        "has no instruction of tensor cores",
    ]
    assert script().faults(replace(one, dtype="f32"), {**good, "tensor_cores": {}}, gpu) == []


def test_measuring_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    """What is in the cache is not compiled again; the script writes results, and then the page."""
    whole, sizes = script().asked, script().Sizes(((256, 1024),), (1,), script().ROWS[:1], None)
    first = dict(list(whole(script().gpu_of(80), True, sizes).items())[:1])
    monkeypatch.setattr(script(), "asked", lambda gpu, quick: first)
    monkeypatch.setattr(script(), "CAPABILITIES", (80,))
    monkeypatch.setattr(script(), "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(script(), "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text(f"before\n{script().START}{script().END}after\n")
    options = ["--capability", "80", "--cache", str(tmp_path / "cache")]
    assert script().main(options) == 0
    assert capsys.readouterr().out == "sm_80: 1 of 1\n"
    before = (tmp_path / "results.json").read_text()
    assert script().main(["--capability", "90", *options[2:]]) == 0
    assert "left as they are" in capsys.readouterr().out
    assert (tmp_path / "results.json").read_text() == before
    monkeypatch.setattr(script(), "compile_all", lambda *_: pytest.fail("it was compiled"))
    assert script().main(options) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["symbol"] for row in rows] == list(first)
    assert script().main(["--table"]) == 0
    before, heading, *_, after = (tmp_path / "page.md").read_text().split("\n")[:-1]
    assert (before, heading, after) == ("before", script().START.strip(), "after")
    monkeypatch.setattr(script(), "faults", lambda *_: ["is slow"])
    assert script().main([*options, "--quick"]) == 1
    assert "is slow" in capsys.readouterr().out
