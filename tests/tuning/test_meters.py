"""What measures a way on each kind of target, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from butterflyc.compiler.errors import ToolMissing, Unsupported
from butterflyc.compiler.run.bare_metal import available
from butterflyc.kernels.record import Spec
from butterflyc.targets import cpu
from butterflyc.targets.registry import core_names, load_core
from butterflyc.tuning.measure import Asked, Meter, WrongResult
from butterflyc.tuning.meters import meter_of, task_of, tools
from butterflyc.tuning.search import Way
from butterflyc.tuning.trial import METHODS

from .small import LINEAR, spec

DENSE = spec(
    "quantized_linear", "i8 2 32, i8 16 32, i32 16, i16 16", "i8 2 16", planes=4, drop=3, shift=17
)
LINEAR_WAY, DENSE_WAY = Way("linear", {}), Way("integer_products", {})
# By target: what it is measured in, a call, its default way and another one.
EXACT = {
    "rv32imc": ("instructions", DENSE, DENSE_WAY, Way("integer_products", {"rows": 1})),
    "cortex-m4": ("instructions", DENSE, DENSE_WAY, Way("integer_pairs", {})),
    "cortex-a72": ("cycles", LINEAR, LINEAR_WAY, Way("linear", {"tile_rows": 1})),
    "armv7a": ("instructions", LINEAR, LINEAR_WAY, Way("linear", {"tile_rows": 1})),
}
TOOLS = {"cortex-a72": ["qemu-aarch64", "qemu-aarch64-static"], "armv7a": ["qemu-arm"]}
TOOLS["armv7a"].append("qemu-arm-static")


def need(target: str, needs_tool: Callable[..., str]) -> None:
    if target in TOOLS:
        needs_tool(*TOOLS[target])
        return
    for missing in available(target):
        needs_tool(missing.tool)


def meter_for(target: str) -> Meter:
    return meter_of(load_core(target))


def figure(meter: Meter, asked: Spec, way: Way, default: Way) -> float:
    return meter.read(Asked(asked, way, default, rounds=1)).value


@pytest.mark.parametrize("target", EXACT)
def test_counts_are_exact(target: str, needs_tool: Callable[..., str]) -> None:
    """The same way counts the same each time, another one counts otherwise."""
    need(target, needs_tool)
    method, asked, default, other = EXACT[target]
    meter = meter_for(target)
    assert meter.method == method
    assert not meter.alone
    first, again = (figure(meter, asked, default, default) for _ in range(2))
    assert first == again > 100
    assert figure(meter, asked, other, default) not in (0, first)


@pytest.mark.parametrize("target", ["rv32imc", "cortex-a72"])
def test_wrong_results_are_found(target: str, needs_tool: Callable[..., str]) -> None:
    """A kernel that computes another op is not measured."""
    need(target, needs_tool)
    wrong = spec("matmul", "f32 4 4, f32 4 4", "f32 4 4")
    with pytest.raises(WrongResult, match="result 0 is off by"):
        figure(meter_for(target), wrong, LINEAR_WAY, LINEAR_WAY)


def test_time_is_told_in_the_default_ways() -> None:
    """Which is the figure of its own trial; another way takes as much of that as it is slower."""
    meter = meter_for("host")
    assert (meter.method, meter.alone) == ("time", True)
    default = meter.read(Asked(LINEAR, LINEAR_WAY, LINEAR_WAY, rounds=3))
    assert 0 < default.value < 1e-3
    slow = Way("linear", {"tile_rows": 1, "tile_vectors": 1, "unroll_k": 1})
    other = meter.read(Asked(LINEAR, slow, LINEAR_WAY, 100.0, rounds=5))
    assert 100 < other.value < 10_000
    same = meter.read(Asked(LINEAR, LINEAR_WAY, LINEAR_WAY, 100.0, rounds=5))
    assert same.value == pytest.approx(100, rel=0.5)


def test_this_machine_has_two_names() -> None:
    """``host`` and the name of what it is: records are of the latter, and of its CPU."""
    own = cpu.host()
    meters = [meter_for(name) for name in ("host", own.name)]
    assert {meter.target for meter in meters} == {own.name}
    (features,) = {meter.features() for meter in meters}
    assert all(features)
    assert len(features) == 1


def test_boards_of_one_processor_share_their_records(needs_tool: Callable[..., str]) -> None:
    """What was counted for one is known for the other: the task is the same."""
    for name in ("rv32imc", "cortex-m4"):
        need(name, needs_tool)
    for machine, board in (("rv32imc", "esp32c3"), ("cortex-m4", "nrf52840")):
        one, other = (task_of(meter_for(name), "a call") for name in (machine, board))
        assert one == other


def test_what_nothing_here_measures() -> None:
    """A machine of which nothing is known is refused by name."""
    with pytest.raises(Unsupported, match="nothing here measures kernels for c99"):
        meter_for("c99")


@pytest.mark.parametrize("target", ["rv32imc", "cortex-m4", "cortex-a72", "armv7a"])
def test_instruments_name_versions(target: str, needs_tool: Callable[..., str]) -> None:
    """With another emulator, model or C compiler figures are another task's."""
    need(target, needs_tool)
    text = meter_for(target).instrument()
    assert any(word[0].isdigit() and "." in word for word in text.split()), text
    names = {"rv32imc": "gcc", "cortex-m4": "gcc", "cortex-a72": "llvm-mca", "armv7a": "QEMU"}
    assert names[target] in text
    assert tools(load_core(target)).toolchain.startswith("apache-tvm 0.")


def test_methods_are_known() -> None:
    """Whatever is measured is measured in one of them."""
    found = {meter.method for core in core_names() if (meter := meter_or_none(core))}
    assert found == set(METHODS)


def meter_or_none(target: str) -> Meter | None:
    try:
        return meter_for(target)
    except (Unsupported, ToolMissing):  # of any machine, of a GPU that is not here
        return None
