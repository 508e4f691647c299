"""Kernels are loaded and launched as CUDA's driver wants it: checked by a stand-in for the driver.

The stand-in reads what a kernel takes from its machine code, as the driver does.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from butterflyc.compiler.errors import (
    BadInput,
    DoesNotFit,
    Incompatible,
    ToolFailed,
    ToolMissing,
)
from butterflyc.compiler.run.cuda_driver import Driver, runs_on

from . import tiny
from .stand_in import StandIn, built, passed

pytest.importorskip("triton")

BUFFERS = {"x": 0x7F0000001000, "w": 0x7F0000002000, "y": 0x7F0000003000}


@pytest.fixture(scope="module")
def library(tmp_path_factory, needs_tool) -> Path:
    return built(tmp_path_factory.mktemp("driver"), needs_tool("cc", "gcc"))


@pytest.fixture
def machine(library) -> StandIn:
    return StandIn(library)


def driver(machine: StandIn, *launches, capability: int = 90) -> Driver:
    codes = [tiny.code(launch, capability) for launch in launches]
    return Driver(codes, machine.path)


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.floats(width=32, allow_nan=False),
    st.integers(1, 2**31 - 1),
    st.integers(0, 2**44).map(lambda n: 16 * n),
    st.sampled_from([0, 1, 0x5500001234]),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arguments_are_passed_as_the_kernel_takes_them(library, count, factor, blocks, x, stream):
    """Addresses, numbers and null addresses stand where the machine code reads them."""
    machine = StandIn(library)
    launch = tiny.scale_rows(16 if count % 16 == 0 else 15)
    codes = [tiny.code(launch, 90)]
    values = dict(launch.arguments)
    values |= {"count": replace(values["count"], value=count)}
    values |= {"factor": replace(values["factor"], value=factor)}
    launch = replace(launch, arguments=tuple(values.items()), grid=(blocks, 2, 3))
    Driver(codes, machine.path).launch(launch, {"x": x, "y": 0x1000}, stream)
    call = machine.calls()[-1]
    where = f"grid {blocks} 2 3 block 128 1 1 shared 0 stream {hex(stream) if stream else '(nil)'}"
    assert call.startswith(f"cuLaunchKernel scale_rows {where}")
    wanted = [("Q", x), ("Q", 0x1000), ("i", count), ("f", factor), ("Q", 0), ("Q", 0)]
    assert passed(call) == [struct.pack(f"<{kind}", value) for kind, value in wanted]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("launch", [tiny.scale_rows(), tiny.product(), tiny.spills()])
def test_the_code_says_the_parameters_of_the_machine_code(machine, capability, launch):
    """As many parameters, of the same sizes, as the driver finds in the cubin."""
    machine.set(capability=capability)
    driver(machine, launch, capability=capability).launch(launch, BUFFERS)
    sizes = tuple(map(len, passed(machine.calls()[-1])))
    assert sizes == tiny.code(launch, capability).parameters


def test_shared_memory_beyond_48_kib_is_asked_for(machine):
    """A kernel that needs more is allowed that much; one that needs less is left as it is."""
    small, large = tiny.scale_rows(), tiny.product("fp16", 128)
    bytes = tiny.code(large, 90).shared
    assert bytes > 48 * 1024
    ready = driver(machine, small, large)
    assert [c for c in machine.calls() if "cuFuncSetAttribute" in c] == [
        f"cuFuncSetAttribute 8 of product = {bytes}"
    ]
    ready.launch(large, BUFFERS)
    assert f"shared {bytes}" in machine.calls()[-1]


def test_a_repeated_launch_is_one_call(machine):
    """The driver is called once for each launch, with the addresses given that time."""
    launch = tiny.scale_rows()
    ready = driver(machine, launch)
    ready.launch(launch, BUFFERS)
    machine.calls()
    for at in range(0x10000, 0x20000, 0x1000):
        ready.launch(launch, {"x": at, "y": at + 0x800}, 7)
    calls = machine.calls()
    assert len(calls) == 16
    assert all(call.startswith("cuLaunchKernel") for call in calls)
    addresses = [struct.unpack("<QQ", b"".join(passed(call)[:2])) for call in calls]
    assert addresses == [(at, at + 0x800) for at in range(0x10000, 0x20000, 0x1000)]


def test_the_current_context_is_used(machine):
    """Where torch has made one current, kernels are loaded on its GPU, and none is made."""
    machine.set(devices=2, current=0x1001, capability=86)
    ready = driver(machine, tiny.scale_rows(), capability=80)
    calls = machine.calls()
    assert ready.capability == 86
    assert "cuDeviceGetAttribute 75 of 1" in calls
    assert not [c for c in calls if c.startswith(("cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"))]


def test_without_one_the_first_gpu_is_used(machine):
    """Where no context is current, it becomes the one that torch would take."""
    driver(machine, tiny.scale_rows())
    assert "cuDevicePrimaryCtxRetain 0" in machine.calls()
    assert machine.current == 0x1000


def test_a_thread_that_has_no_context_gets_one(machine):
    """A launch from a thread that has not used the GPU makes the context current, and runs."""
    launch = tiny.scale_rows()
    ready = driver(machine, launch)
    machine.set(current=0)
    machine.calls()
    ready.launch(launch, BUFFERS)
    assert machine.current == 0x1000
    assert machine.calls()[-1].startswith("cuLaunchKernel scale_rows")


def test_another_context_is_left_alone(machine):
    """Where a context is current and the driver refuses it, that is an error; it stays current."""
    launch = tiny.scale_rows()
    ready = driver(machine, launch)
    machine.set(current=0x1001)
    machine.fail("cuLaunchKernel", 201)
    with pytest.raises(ToolFailed, match="CUDA_ERROR_INVALID_CONTEXT"):
        ready.launch(launch, BUFFERS)
    assert machine.current == 0x1001


def test_threads_do_not_mix_their_buffers(machine):
    """Launches of one kernel from several threads each pass their own addresses."""
    launch = tiny.scale_rows()
    ready = driver(machine, launch)
    machine.calls()

    def work(first: int) -> None:
        for i in range(50):
            ready.launch(launch, {"x": first + 16 * i, "y": first + 16 * i})

    threads = [threading.Thread(target=work, args=(0x1000 << n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls = machine.calls()
    assert len(calls) == 200
    assert all(passed(call)[0] == passed(call)[1] for call in calls)


RUNS = [
    (80, 80, True),
    (80, 86, True),
    (80, 89, True),
    (86, 80, False),
    (75, 80, False),
    (80, 87, False),  # Jetson Orin
    (87, 89, False),
    (80, 90, False),
    (90, 90, True),
    (100, 103, False),
    (120, 121, False),
]


@pytest.mark.parametrize(("code", "gpu", "does"), RUNS)
def test_where_code_runs(code, gpu, does):
    """On later GPUs of a generation before Hopper, but on no Jetson; from then on on its own."""
    assert runs_on(code, gpu) is does


@pytest.mark.parametrize(("gpu", "chosen"), [(80, 80), (89, 86), (90, 90)])
def test_the_newest_code_that_runs_is_loaded(machine, gpu, chosen):
    """Of code for several GPUs the last that runs on this one is taken."""
    launch = tiny.product()
    codes = [tiny.code(launch, capability) for capability in (90, 80, 86)]
    codes = [attrs.evolve(c, shared=c.capability * 16) for c in codes]
    machine.set(capability=gpu)
    Driver(codes, machine.path).launch(launch, BUFFERS)
    assert f"shared {chosen * 16} " in machine.calls()[-1]


def test_no_code_for_this_gpu(machine):
    """The error says which GPU it is, and which ones the artefact has code for."""
    launch = tiny.scale_rows()
    machine.set(capability=75)
    with pytest.raises(Incompatible, match="is of sm_75; there is some for sm_80, sm_90") as caught:
        Driver([tiny.code(launch, 90), tiny.code(launch, 80)], machine.path)
    assert "--target cuda-sm75" in caught.value.help


def test_no_driver():
    """Without NVIDIA's library the error says so, and what runs the model nonetheless."""
    with pytest.raises(ToolMissing, match="no NVIDIA driver") as caught:
        Driver([], "libnone-of-that-name.so.1")
    assert "--interpret runs it here, slowly" in caught.value.help


def test_no_gpu(machine):
    """A driver that finds no GPU is told from one that is not there."""
    machine.set(devices=0)
    with pytest.raises(ToolMissing, match="finds no GPU"):
        Driver([], machine.path)


def test_a_driver_that_does_not_start(machine):
    """Another failure of cuInit has the driver's name for it; one without a name its number."""
    machine.fail("cuInit", 999)
    with pytest.raises(ToolFailed, match="does not start: error 999"):
        Driver([], machine.path)


def test_a_driver_without_a_function_is_too_old():
    """A library that lacks a function that is called is refused with the function's name."""
    with pytest.raises(Incompatible, match="has no function cuInit"):
        Driver([], "libm.so.6")


@pytest.mark.parametrize(
    ("function", "kind", "words"),
    [
        ("cuModuleLoadData", Incompatible, r"CUDA 13\.0, does not load scale_rows_\w+: CUDA_ERROR"),
        (
            "cuCtxGetCurrent",
            ToolFailed,
            r"cuCtxGetCurrent fails: CUDA_ERROR_NO_BINARY_FOR_GPU \(as",
        ),
        ("cuCtxSetCurrent", ToolFailed, "cuCtxSetCurrent fails"),
        ("cuCtxGetDevice", ToolFailed, "cuCtxGetDevice fails"),
        ("cuModuleGetFunction", ToolFailed, "cuModuleGetFunction fails"),
        ("cuLaunchKernel", ToolFailed, r"scale_rows_\w+ cannot be launched on \(1, 1, 1\) blocks"),
    ],
)
def test_what_the_driver_refuses(machine, function, kind, words):
    """An error of the driver has its name, its text and the kernel's name."""
    launch = tiny.scale_rows()
    machine.fail(function, 209)
    with pytest.raises(kind, match=words):
        driver(machine, launch).launch(launch, BUFFERS)


def test_refused_shared_memory(machine):
    """Where the driver does not give what the GPU says it has, the error names the kernel."""
    machine.fail("cuFuncSetAttribute", 1)
    with pytest.raises(ToolFailed, match=r"product_\w+ cannot have [\d,]+ bytes"):
        driver(machine, tiny.product("fp16", 128))


def test_more_shared_memory_than_there_is(machine):
    """A kernel that does not fit says by how much, and what was loaded before is unloaded."""
    machine.set(shared=1000)
    code = tiny.code(tiny.product(), 90)
    with pytest.raises(DoesNotFit, match=rf"needs {code.shared:,} bytes.* a block has 1,000"):
        Driver([code], machine.path)
    assert machine.calls()[-1] == "cuModuleUnload"


def test_parameters_that_do_not_fit(machine):
    """Code that takes other parameters than the launch gives is not launched."""
    launch = tiny.scale_rows()
    code = attrs.evolve(tiny.code(launch, 90), parameters=(8, 8, 8, 4, 8, 8))
    with pytest.raises(Incompatible, match=r"\[8, 8, 8, 4, 8, 8\] bytes, the last 2 of them null"):
        Driver([code], machine.path).launch(launch, BUFFERS)


def test_a_launch_without_code(machine):
    """Code for other GPUs only is an error when it is launched: each GPU may have its own."""
    here, elsewhere = tiny.scale_rows(), tiny.product()
    ready = Driver([tiny.code(here, 90), tiny.code(elsewhere, 80)], machine.path)
    ready.launch(here, BUFFERS)
    with pytest.raises(
        Incompatible, match=r"product_\w+ has no code for this GPU, .* sm_80, sm_90"
    ):
        ready.launch(elsewhere, BUFFERS)


def test_closed_kernels_are_not_launched(machine):
    """After `close` the modules are unloaded, and a launch is an error, not a crash."""
    launch = tiny.scale_rows()
    ready = driver(machine, launch)
    ready.launch(launch, BUFFERS)
    ready.close()
    assert machine.calls()[-1] == "cuModuleUnload"
    with pytest.raises(Incompatible, match=r"scale_rows_\w+ has no code .* some for none"):
        ready.launch(launch, BUFFERS)


@pytest.mark.parametrize(
    ("buffers", "words"),
    [
        ({"x": 0x1000}, "buffer 'y' has no address; scale_rows_"),
        ({"x": 0x1008, "y": 0x1000}, "buffer 'x' lies at 0x1008, which is no multiple of 16"),
    ],
)
def test_buffers_that_kernels_cannot_take(machine, buffers, words):
    """A buffer without an address, or one that is not aligned, is refused before the launch."""
    ready = driver(machine, tiny.scale_rows())
    machine.calls()
    with pytest.raises(BadInput, match=words):
        ready.launch(tiny.scale_rows(), buffers)
    assert machine.calls() == []


@pytest.mark.parametrize("count", [2**31 + 1, -(2**31) - 1, 0.5])
def test_numbers_that_are_no_int32(machine, count):
    """A number that would be cut off is refused."""
    launch = tiny.scale_rows(1001)
    values = dict(launch.arguments)
    values |= {"count": replace(values["count"], value=count)}
    wrong = replace(launch, arguments=tuple(values.items()))
    with pytest.raises(BadInput, match=r"argument 'count' of scale_rows_.* is no int32"):
        driver(machine, launch).launch(wrong, BUFFERS)


def test_nothing_heavy_is_imported():
    """The driver needs neither torch nor Triton."""
    code = (
        "import sys, butterflyc.compiler.run.cuda_driver\n"
        "print({'torch', 'triton', 'tvm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
