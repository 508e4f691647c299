"""A kernel that is wrong on a GPU is found before it is timed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from butterflyc.bench.gpu.checks import LIMITS, MODES, NOT_RUN, Check, checks, problems, run
from butterflyc.bench.gpu.device import Clock, DeviceLost, Rehearsal
from butterflyc.bench.gpu.ours import Runner, way
from butterflyc.bench.gpu.problem import Shape, spec
from butterflyc.kernels.gpu import all_kernels
from butterflyc.kernels.gpu.launch import Fill, Plan
from butterflyc.kernels.record import Kernel

SHAPE = Shape(16, 32, 8, 3)
DEVICE = Rehearsal()
LIBRARY = next(kernel for kernel in all_kernels() if kernel.name == "gpu_library")


class Large(Rehearsal):
    rehearsal = False


def results(asked, device=DEVICE, seconds=60.0):
    return list(run(asked, device, Clock(seconds), lambda _: None))


def check(kernel: Kernel = LIBRARY, plan: Plan | None = None, mode: str = "f32") -> Check:
    dtype, codes = MODES[mode]
    found = way(kernel, spec(SHAPE, dtype, codes), DEVICE.gpu)
    return Check(replace(found, plan=plan or found.plan), mode, SHAPE, "uniform", True)


def test_every_kernel_is_checked_in_every_mode():
    """All records, modes, tokens and experts, with and without inline assembly but in bfloat16."""
    asked = checks(all_kernels(), Large())
    assert {each.shape.channels for each in asked} == {100, 256}
    kernels = {each.found.name for each in asked}
    assert kernels == {kernel.name for kernel in all_kernels()}
    for kernel in all_kernels():
        own = [each for each in asked if each.found.name == kernel.name]
        # Float32 has no tensor cores, for which these kernels are made.
        without = {"f32"} if kernel.name in {"gpu_prefill", "gpu_fused"} else set()
        assert {each.mode for each in own} == set(MODES) - without
        assert {each.asm for each in own if each.mode == "f16"} == {True, False}
        assert {each.asm for each in own if each.mode == "bf16"} == {True}
        assert {each.routing for each in own} == {"uniform", "one expert"}
    assert {s.tokens for s, _ in problems(False)} == {1, 7, 32, 257}
    assert {s.experts for s, _ in problems(False)} == {8, 64}


@pytest.mark.parametrize("mode", MODES)
def test_our_kernels_pass(mode):
    """By the interpreter, every record is within its limit, and the same the second time."""
    asked = [each for each in checks(all_kernels(), DEVICE) if each.mode == mode]
    for result in results(asked):
        assert result["fault"] == "", result
        assert result["error"] < LIMITS[mode]


def test_a_result_that_was_not_written_is_a_fault():
    """Outputs hold NaN before a run, so a kernel that leaves some out is found."""
    whole = check()
    short = replace(whole.found.plan, steps=whole.found.plan.steps[:-1])
    (result,) = results([check(plan=short)])
    assert result["fault"] == "differs from its meaning by nan, of 1e-05 allowed"


def test_a_wrong_result_is_a_fault():
    """Zeros in place of the result are off by all of it."""
    whole = check()
    (result,) = results([check(plan=replace(whole.found.plan, steps=(Fill("y"),)))])
    assert result["error"] == pytest.approx(1.0)
    assert "differs from its meaning by 1, of 1e-05" in result["fault"]


def test_other_bits_the_second_time_are_a_fault(monkeypatch):
    """Two runs on one input must give the same bits, however near they are."""
    plain, count = Runner.run, iter(range(9))
    monkeypatch.setattr(Runner, "run", lambda *call: plain(*call) + next(count) * 1e-7)
    (result,) = results([check()])
    assert result["fault"] == "the same input gives other bits the second time"


def test_what_cannot_be_compiled_is_a_fault_of_its_own():
    """The compiler's message is the fault, and other kernels are checked."""

    class Broken(Rehearsal):
        def compile(self, launches, clock, spilling=False):
            assert spilling
            return {each.symbol: "no code" for each in launches if each.function == "rotate_rows"}

    fused = next(kernel for kernel in all_kernels() if kernel.name == "gpu_fused")
    first, second = results([check(), check(fused)], Broken())
    assert (first["fault"], second["fault"]) == ("no code", "")


def test_after_its_time_nothing_is_checked():
    """What was not checked says so, which is not the same as being wrong."""
    assert [result["fault"] for result in results([check()], seconds=0.0)] == [NOT_RUN]


def test_an_error_in_a_kernel_is_told_from_a_lost_device(monkeypatch):
    """An exception is a fault; if the device answers no more, nothing else is tried."""

    def fail(*_):
        raise RuntimeError("too many resources")

    monkeypatch.setattr(Runner, "run", fail)
    (result,) = results([check()])
    assert result["fault"] == "RuntimeError: too many resources"

    class Dead(Rehearsal):
        def wait(self):
            raise RuntimeError("illegal memory access")

    with pytest.raises(DeviceLost, match="gpu_library left the GPU unusable"):
        results([check()], Dead())
