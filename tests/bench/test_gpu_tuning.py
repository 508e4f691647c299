"""Tuning keeps what is fastest and right, of each kernel and of all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from butterflyc.bench.gpu import tuning as tuned
from butterflyc.bench.gpu.contender import Contender
from butterflyc.bench.gpu.device import Clock, DeviceLost, Rehearsal
from butterflyc.bench.gpu.problem import Shape, spec
from butterflyc.bench.gpu.tuning import Layers, Tuning, candidates, tune
from butterflyc.kernels.gpu import all_kernels
from butterflyc.kernels.gpu.launch import Gpu
from butterflyc.targets.tuned import Tuned

from .gpu_stand_ins import Scripted

KERNELS = {kernel.name: kernel for kernel in all_kernels()}
SHAPE = Shape(16, 32, 8, 3)


class Large(Rehearsal):
    rehearsal = False


@pytest.fixture(autouse=True)
def _two_ways(monkeypatch):
    """A rehearsal takes one way of each kernel, and there is nothing to choose."""
    monkeypatch.setattr(tuned, "REHEARSED", 2)


def in_ways(kernel, count):
    """``kernel`` with ways that differ in a number that it does not know."""
    return replace(kernel, space=lambda *_: tuple({"number": i} for i in range(count)))


def tuning(kernels, device, seconds=60.0):
    return tune(kernels, [SHAPE], Layers(device, "f32", 8), device, Clock(seconds), lambda _: None)


def test_all_ways_of_what_may_be_fastest_are_tried():
    """Kernels whose modelled cost is hopeless keep their default, the others their whole space."""
    device = Large()
    for tokens in (1, 32, 4096):
        asked = spec(Shape(1024, 4096, 8, tokens), "bf16")
        found = candidates(all_kernels(), asked, device)
        able = [k for k in all_kernels() if k.supports(asked, Gpu())]
        least = min(kernel.cost(asked, Gpu()) for kernel in able)
        for kernel in able:
            ways = [each for each in found if each.name == kernel.name]
            worth = kernel.cost(asked, Gpu()) <= 1.5 * least
            assert len(ways) == (len(kernel.space(asked, Gpu())) if worth else 1)


def test_the_fastest_way_of_each_kernel_is_kept(monkeypatch):
    """The best of a kernel is found wherever it stands, and the best of all is the entry."""
    device = Scripted({"gpu_library": 3.0, "gpu_decode": 2.0})
    times = iter([5.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(tuned, "_seconds", lambda *_: (next(times), ""))
    kernels = [in_ways(KERNELS[name], 2) for name in ("gpu_library", "gpu_decode")]
    found = tuning(kernels, device)
    asked = spec(SHAPE, "f32")
    assert [found.parameters(kernel, asked) for kernel in kernels] == [{"number": 1}, {"number": 0}]
    (entry,) = found.entries()
    assert (entry.kernel, entry.parameters, entry.median_us) == ("gpu_library", {"number": 1}, 1e6)
    whole = Tuned("a", 90, "3", "2", found.entries())
    assert whole.choice(asked) == ("gpu_library", {"number": 1})
    assert [each["us"] for each in found.tried] == [5e6, 1e6, 2e6, 4e6]


def test_what_has_no_time_or_no_code_is_listed(monkeypatch):
    """A way that is late or spills has a reason, and no place among the best."""

    class Spilling(Rehearsal):
        def compile(self, launches, clock, spilling=False):
            assert not spilling
            return {each.symbol: "registers spill" for each in launches}

    found = tuning([KERNELS["gpu_library"]], Spilling())
    assert [each["fault"] for each in found.tried] == ["registers spill"]
    found = tuning([KERNELS["gpu_library"]], Rehearsal(), seconds=0.0)
    assert [each["fault"] for each in found.tried] == ["not tried: the time was over"]
    assert (found.best, found.entries()) == ({}, ())


def test_a_way_that_computes_something_else_is_not_timed(monkeypatch):
    """Results are compared with those of the first way, NaN with nothing."""
    plain, count = Contender.once, iter(range(9))
    monkeypatch.setattr(Contender, "once", lambda *call: plain(*call) * (1 + next(count)))
    found = tuning([in_ways(KERNELS["gpu_library"], 2)], Rehearsal())
    faults = [each["fault"] for each in found.tried]
    assert faults[0] == ""
    assert faults[1].startswith("differs from the first way by ")


@pytest.mark.parametrize("dead", [False, True])
def test_an_error_is_listed_unless_the_device_is_lost(monkeypatch, dead):
    """One way may fail and the next be timed; a device that is gone ends it."""

    class Failing(Rehearsal):
        def wait(self):
            if dead:
                raise RuntimeError("illegal memory access")

    def fail(*_):
        raise ValueError("no")

    monkeypatch.setattr(tuned, "contender", fail)
    if dead:
        with pytest.raises(DeviceLost, match="gpu_library"):
            tuning([KERNELS["gpu_library"]], Failing())
    else:
        found = tuning([KERNELS["gpu_library"]], Failing())
        assert [each["fault"] for each in found.tried] == ["ValueError: no"]


def test_a_contender_that_cannot_be_timed_says_why(monkeypatch):
    """What fails while it is captured has its reason in the list."""

    class Uncaptured(Rehearsal):
        def captured(self, call):
            raise RuntimeError("operation not permitted when stream is capturing")

    found = tuning([KERNELS["gpu_library"]], Uncaptured())
    assert "not permitted" in found.tried[0]["fault"]


def test_layers_are_made_once():
    """Weights and their packed constants are shared by all points of a width."""
    layers = Layers(Rehearsal(), "f32", 8)
    assert layers.weights(16, 32) is layers.weights(16, 32)
    assert layers.constants(16, 32) is layers.constants(16, 32)
    assert Tuning().parameters(KERNELS["gpu_library"], spec(SHAPE, "f32")) is None
