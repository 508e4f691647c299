"""GPUs: times of ways in turns, what is refused without one, and records that come from elsewhere.

Triton's interpreter stands in for a GPU, of which every call takes as long as a test says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import butterflyc as bc
from butterflyc.bench.gpu.device import Rehearsal
from butterflyc.compiler.errors import ToolFailed, ToolMissing
from butterflyc.kernels.record import Spec
from butterflyc.targets import cuda
from butterflyc.targets.registry import load_core
from butterflyc.tuning import meters
from butterflyc.tuning.database import Database
from butterflyc.tuning.measure import Asked, WrongResult
from butterflyc.tuning.meter_gpu import GpuMeter
from butterflyc.tuning.meters import meter_of, tools
from butterflyc.tuning.records import records_for
from butterflyc.tuning.search import Way
from butterflyc.tuning.trial import Task, Trial

from ..bench.gpu_stand_ins import Scripted
from .small import X, calls, expected, net, spec

CORE = load_core("cuda-sm90")
# A few tokens, and more of them than copies of weights are made for.
LAYER = "f16 3 4 4 2, ternary 32 16, f32 , f32 32, f32 {0} 2, i64 {0} 2, f16 3 8 4 2, f16 16 32"
SAID: dict[str, Any] = {"dtype": "f16", "activation": "gelu", "biased": True}
SAID |= {"activate_last": False, "activation_bits": 0}
SAID |= {f"order_{side}": (0, 1, 2, 3, 0, 1, 2, 3) for side in ("in", "out")}
DEFAULT = Way("gpu_fused", {})
LIBRARY = Way("gpu_library", {})


def layer(tokens: int) -> Spec:
    given = f"f32 {tokens} 16, {LAYER.format(tokens)}"
    return spec("butterfly_layer", given, f"f32 {tokens} 16", **SAID)


def meter(device: Rehearsal | None = None) -> GpuMeter:
    return GpuMeter(CORE, lambda folder: device or Scripted({}))


@pytest.mark.parametrize("way", [DEFAULT, LIBRARY, Way("gpu_decode", {})], ids=lambda w: w.kernel)
def test_ways_are_timed_in_turns(way: Way) -> None:
    """The default way's own figure is what its calls take; others are told in it."""
    device = Scripted({"default": 2.0, "way": 3.0})
    first = meter(device).read(Asked(layer(5), way, way, rounds=3))
    # So many calls are one launch, that a launch is not what is seen.
    assert first.value == pytest.approx(2.0 / 2)
    other = meter(device).read(Asked(layer(5), way, DEFAULT, 10.0, rounds=4))
    assert other.value == pytest.approx(15.0)
    assert device.rounds == [(("default", "way"), rounds, False) for rounds in (3, 4)]


def test_many_tokens_are_timed_behind_a_cold_cache() -> None:
    """One call of them is long enough to be seen alone."""
    device = Scripted({})
    meter(device).read(Asked(layer(65), LIBRARY, LIBRARY, rounds=3))
    assert device.rounds == [(("default", "way"), 3, True)]


def test_deep_rotations_are_tried_too() -> None:
    """Their operands are drawn, and what the kernels make of them is what the op means."""
    given = (
        "f32 5 16, f16 3 4 16 2, ternary 32 16, f32 , f32 32, f32 5 2, i64 5 2, f16 3 5 32 2, "
        "i32 4 16, i32 5 32, f16 16 32"
    )
    said = {name: SAID[name] for name in SAID if not name.startswith("order")}
    asked = spec("butterfly_deep_layer", given, "f32 5 16", **said, kept=32)
    way = Way("gpu_deep_library", {})
    assert meter().read(Asked(asked, way, way, rounds=2)).value > 0


def test_wrong_results_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that leaves out a step is not timed."""
    from butterflyc.kernels.gpu import library

    monkeypatch.setattr(library, "product", lambda step, buffers: buffers[step.out].zero_())
    with pytest.raises(WrongResult, match="result 0 is off by"):
        meter().read(Asked(layer(5), LIBRARY, LIBRARY))


def test_what_does_not_compile_is_told() -> None:
    """With what the compiler says."""

    class Refusing(Scripted):
        def compile(self, launches: Any, clock: Any, spilling: bool = False) -> dict[str, str]:
            assert spilling, "a way that spills may be the fastest"
            return {launch.symbol: "out of resource" for launch in launches}

    with pytest.raises(ToolFailed, match="out of resource"):
        meter(Refusing({})).read(Asked(layer(5), LIBRARY, LIBRARY))


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize("step", ["captured", "seconds"])
@pytest.mark.parametrize("kind", [RuntimeError, ToolFailed])
def test_a_gpu_that_is_lost_ends_the_process(
    kind: type[Exception], step: str, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which its parent starts another; an error that leaves it well is the way's own."""

    def fail(*given: Any) -> Any:
        raise kind("illegal memory access")

    device = Scripted({})
    monkeypatch.setattr(device, step, fail)
    if lost:
        monkeypatch.setattr(device, "wait", _lost)
    with pytest.raises(SystemExit if lost else kind, match="illegal memory access"):
        meter(device).read(Asked(layer(5), LIBRARY, LIBRARY))
    assert not issubclass(SystemExit, Exception), "so the child of a worker does not catch it"


def _lost() -> None:
    raise RuntimeError("illegal memory access")


def test_without_a_gpu_nothing_is_measured() -> None:
    """It is said at once, with what can be done."""
    if cuda.device_name(90):
        pytest.skip("a GPU of that kind is here")
    found = meter_of(CORE)
    assert (found.target, found.method, found.features()) == ("cuda-sm90", "time", ())
    with pytest.raises(ToolMissing, match="timed on a GPU of that kind, and none is here") as e:
        bc.tune(net(), (X,), target="cuda-sm90", mode="f16")
    assert "--check" in (e.value.help or "")


def test_the_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """``cuda`` is the core of its kind, and records are of its name."""
    monkeypatch.setattr(cuda, "_capability", lambda: 90)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA Stand-in")
    found = meter_of(load_core("cuda"))
    assert (found.target, found.features()) == ("cuda-sm90", ("NVIDIA Stand-in",))
    assert found.instrument() == ""
    assert meter_of(load_core("cuda-sm80")).features() == ()
    assert tools(CORE).toolchain.startswith("triton 3.")


def test_tools_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra that has them."""

    def missing(name: str) -> str:
        raise meters.PackageNotFoundError(name)

    monkeypatch.setattr(meters, "version", missing)
    for core, name, extra in ((CORE, "triton", "gpu"), (load_core("host"), "tvm", "compile")):
        with pytest.raises(ToolMissing, match=f"{name} is not installed") as caught:
            tools(core)
        assert f"butterflyc[{extra}]" in (caught.value.help or "")


def trial(way: Way, value: float) -> Trial:
    (call,) = calls("cuda-sm90", "f16")
    task = Task(call.key, "cuda-sm90", ("NVIDIA H100",), "time")
    return Trial(task, tools(CORE), way.kernel, way.parameters, value)


def test_compile_takes_times_from_another_machine(tmp_path: Path) -> None:
    """Where no GPU is, a time of one of the kind is taken; the program computes the same."""
    (call,) = calls("cuda-sm90", "f16")
    ways: Mapping[str, Way] = {way.kernel: way for way in call.ways}
    path = tmp_path / "trials.sqlite"
    with Database(path) as database:
        database.add(trial(call.ways[0], 2e-5))
        database.add(trial(ways["gpu_library"], 1e-5))
    assert records_for(CORE, path).tuned(call.spec) == ("gpu_library", {})
    program = bc.compile(net(), (X,), target="cuda-sm90", mode="f16", records=path)
    tuning = program.manifest["tuning"]
    assert (tuning["kernels"], tuning["tuned"]) == (1, 1)
    assert tuning["records"][0]["task"]["features"] == ("NVIDIA H100",)
    got = program.on("interpreter")(X)
    assert np.abs(got.numpy() - expected()).max() / np.abs(expected()).max() < 2e-3


def test_parameters_that_come_to_the_same_are_one_way() -> None:
    """No two ways launch the same, and the default one stands first."""
    (call,) = calls("cuda-sm90", "f16")
    kernels = {kernel.name: kernel for kernel in cuda.kernels()}
    gpu = cuda.machine(CORE).lanes
    plans = [
        (way.kernel, kernels[way.kernel].plan(call.spec.with_parameters(way.parameters), gpu))
        for way in call.ways
    ]
    assert len(set(plans)) == len(plans) > 10
    assert call.ways[0].parameters == {}
