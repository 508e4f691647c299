"""The GPU benchmark on a device: what is compiled, captured, timed, and what happens if it dies."""

from __future__ import annotations

import pytest
import torch

from butterflyc.bench.gpu import device as devices
from butterflyc.bench.gpu.device import Clock, Codes, Cuda, DeviceLost, check_alive, find
from butterflyc.compiler.errors import ToolFailed, ToolMissing
from butterflyc.compiler.lower.cubin import Code
from butterflyc.compiler.run.gpu import Driven
from butterflyc.compiler.run.sass import Resources
from butterflyc.kernels.gpu.launch import Gpu, Launch, Plan

from .gpu_stand_ins import FakeCuda

LAUNCHES = [Launch("m", f"f{i}", (), (), (1, 1, 1)) for i in range(5)]
SYMBOLS = [launch.symbol for launch in LAUNCHES]


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


def code_of(launch: Launch) -> Code:
    return Code(launch.symbol, 90, launch.function, 4, 0, (), 0, launch.function.encode())


@pytest.fixture
def compiler(monkeypatch):
    """Compiles all but f1; f3 spills. Lists what it was asked for."""
    asked = []

    def compile_all(launches, capability, cache):
        asked.append([launch.function for launch in launches])
        if any(launch.function == "f1" for launch in launches):
            raise ToolFailed("f1 cannot be compiled")
        return {launch.symbol: code_of(launch) for launch in launches}

    def resources(cubin):
        return Resources(32, 0, 0, {"STL": 3} if cubin == b"f3" else {"FFMA": 1})

    monkeypatch.setattr(devices, "compile_all", compile_all)
    monkeypatch.setattr(devices, "resources", resources)
    return asked


def test_one_bad_kernel_does_not_keep_others_from_compiling(compiler, tmp_path):
    """What fails has its own message, what spills another; all else has code, compiled once."""
    codes = Codes(90, tmp_path)
    failed = codes.add(LAUNCHES, Clock(60), spilling=False)
    assert set(failed) == {SYMBOLS[1], SYMBOLS[3]}
    assert "f1 cannot be compiled" in failed[SYMBOLS[1]]
    assert failed[SYMBOLS[3]] == "registers spill: 3 loads and stores of them"
    assert set(codes.found) == {SYMBOLS[i] for i in (0, 2, 3, 4)}
    before = len(compiler)
    assert set(codes.add(LAUNCHES, Clock(60), spilling=True)) == {SYMBOLS[1]}
    assert len(compiler) == before


def test_nothing_is_compiled_after_the_time(compiler, tmp_path):
    """Launches that are late have no code, and say so."""
    failed = Codes(90, tmp_path).add(LAUNCHES[:1], Clock(0), spilling=False)
    assert failed == {SYMBOLS[0]: devices.LATE}
    assert compiler == []


def test_a_clock_gives_no_more_than_it_has():
    """A part of a clock ends with it."""
    assert Clock(5).part(100).left <= 5
    assert Clock(100).part(5).left <= 5


def test_without_a_gpu_it_says_what_to_do(tmp_path):
    """The plain benchmark on a machine without a GPU names --dry-run."""
    assert not torch.cuda.is_available()
    with pytest.raises(ToolMissing, match="torch sees none here") as raised:
        find(tmp_path, rehearsal=False)
    assert "--dry-run" in str(raised.value)


def test_a_gpu_is_found_with_its_sizes(cuda, tmp_path):
    """Name, cache and memory are torch's, all else is of the target of its capability."""
    found = find(tmp_path, rehearsal=False)
    assert isinstance(found, Cuda)
    assert (found.name, found.cache_bytes, found.memory_bytes) == ("NVIDIA Stand-in", 64, 1000)
    assert (found.gpu.capability, found.gpu.name) == (90, "sm90")
    assert not found.rehearsal


def test_calls_are_captured_once_and_timed_in_turns(cuda, tmp_path):
    """A call runs aside, is captured, and replayed in turns, each behind a spoilt cache."""
    found = Cuda(tmp_path, Gpu())
    ran = []
    call = found.captured(lambda: ran.append(len(cuda.log)))
    assert (len(ran), cuda.log) == (2, ["aside", "capture"])
    found._spoil = Spoilt(cuda)
    times = found.seconds({"a": call, "b": call}, 3, cold=True)
    assert times == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert cuda.log[2:] == ["spoil", "replay"] * 6 + ["wait"]
    found.seconds({"a": call}, 2, cold=False)
    assert cuda.log[-3:] == ["replay", "replay", "wait"]


class Spoilt:
    def __init__(self, cuda):
        self._cuda = cuda

    def zero_(self):
        self._cuda.log.append("spoil")


def test_memory_is_given_back_before_a_capture(cuda, tmp_path):
    """Where PyTorch holds much of it, and after each point."""
    found = Cuda(tmp_path, Gpu())
    cuda.reserved = 500
    found.captured(lambda: None)
    assert cuda.log == ["empty", "aside", "capture"]
    found.release()
    assert cuda.log[-2:] == ["wait", "empty"]


def test_a_plan_gets_the_codes_of_its_launches(cuda, compiler, tmp_path, monkeypatch):
    """The driver loads what the plan launches and nothing else; streams are torch's."""
    loaded, launched = [], []

    class Driver:
        def __init__(self, codes):
            loaded.extend(code.symbol for code in codes)

        def launch(self, step, addresses, stream):
            launched.append((step.symbol, addresses, stream))

    monkeypatch.setattr(devices, "Driver", Driver)
    found = Cuda(tmp_path, Gpu())
    assert set(found.compile(LAUNCHES[2:], Clock(60))) == {SYMBOLS[3]}
    how = found.how(Plan((LAUNCHES[2],)))
    assert isinstance(how, Driven)
    x = torch.zeros(4)
    how.launch(LAUNCHES[2], {"x": x})
    assert loaded == [SYMBOLS[2]]
    assert launched == [(SYMBOLS[2], {"x": x.data_ptr()}, 7)]


def test_functions_are_optimised_for_one_shape(cuda, tmp_path, monkeypatch):
    """torch.compile is told that shapes are fixed."""
    given = {}

    def compile(function, **options):
        given.update(options)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    function = Cuda(tmp_path, Gpu()).optimised(len)
    assert (function, given) == (len, {"dynamic": False})


def test_a_dead_device_is_told_from_a_failed_call(cuda, tmp_path):
    """An error after which the device still answers is the kernel's; else the device is lost."""
    found = Cuda(tmp_path, Gpu())
    check_alive(found, "gpu_decode", ValueError("bad"))
    cuda.lost = "an illegal memory access was encountered"
    with pytest.raises(DeviceLost, match="gpu_decode left the GPU unusable: an illegal") as raised:
        check_alive(found, "gpu_decode", ValueError("bad"))
    assert raised.value.kernel == "gpu_decode"


def test_rehearsals_need_no_code(tmp_path):
    """Nothing is compiled, and launches are interpreted."""
    found = find(tmp_path, rehearsal=True)
    assert found.compile(LAUNCHES, Clock(0)) == {}
    assert type(found.how(Plan(()))).__name__ == "Interpreted"
    assert found.rehearsal
