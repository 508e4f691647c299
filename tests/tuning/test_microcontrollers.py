"""On microcontrollers tuned kernels take fewer instructions than fixed ones, exactly counted."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path

import pytest

from butterflyc.compiler.run.bare_call import call_on_machine
from butterflyc.compiler.run.bare_metal import available
from butterflyc.kernels import all_kernels
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.record import Spec
from butterflyc.targets import mcu
from butterflyc.targets.registry import load_core
from butterflyc.tuning.calls import Call, key_of
from butterflyc.tuning.database import Database
from butterflyc.tuning.measure import kernel_of, trying
from butterflyc.tuning.meters import meter_of, task_of, tools
from butterflyc.tuning.search import Way
from butterflyc.tuning.trial import Trial
from butterflyc.tuning.tuner import Budget, CallProgress, Tuner

from .inline import Inline
from .small import spec

TRIALS = 20
ATTRIBUTES = {"planes": 4, "drop": 3, "shift": 17}


def dense(rows: int, outputs: int = 256) -> Spec:
    """A layer of 64 columns, whose weights are of 4 digits."""
    given = f"i8 {rows} 64, i8 {outputs} 64, i32 {outputs}, i16 {outputs}"
    return spec("quantized_linear", given, f"i8 {rows} {outputs}", **ATTRIBUTES)


def ternary(rows: int) -> Spec:
    return spec("ternary_dot", f"i8 {rows} 64, ternary 256 64", f"i32 {rows} 256")


def call_for(asked: Spec, lanes: Lanes) -> Call:
    """All ways to compute it, the fixed one first: no parameters, and the kernel of least cost."""
    able = [k for k in all_kernels() if asked.op in k.ops and k.supports(asked, lanes)]
    default = min(able, key=lambda kernel: (kernel.cost(asked, lanes), kernel.name))
    found: dict[Hashable, Way] = {(default.name, default.plan(asked, lanes)): Way(default.name, {})}
    for kernel in able:
        places = kernel.combinations(asked, lanes)
        for parameters in kernel.ways(asked, lanes):
            way = asked.with_parameters(parameters)
            plan = kernel.plan(way, lanes)
            place = places.get(plan, parameters)
            found.setdefault(
                (kernel.name, plan), Way(kernel.name, parameters, kernel.cost(way, lanes), place)
            )
    return Call(key_of(asked), asked, ("a_node",), 1, tuple(found.values()))


def tuned(machine: str, asked: Spec, trials: int, path: Path) -> CallProgress:
    meter = meter_of(load_core(machine))
    call = call_for(asked, mcu.machine(load_core(machine)).lanes)
    with Database(path) as database:
        task = task_of(meter, call.key)
        ours, budget = tools(load_core(machine)), Budget(trials=trials)
        run = Tuner([call], [task], ours, database, Inline(meter), budget)
        (progress,), interrupted = run.run()
    assert not interrupted
    return progress


def counted(machine: str, asked: Spec, trial: Trial) -> int:
    """The instructions of a way, on the operands that it was tried on; its results are right."""
    tried, lanes = trying(asked), mcu.machine(load_core(machine)).lanes
    kernel, way = kernel_of(Way(trial.kernel, {})), asked.with_parameters(trial.parameters)
    call = call_on_machine(machine, kernel, way, tried.arrays, lanes)
    tried.check(call.results)
    return call.instructions


def check_gain(
    machine: str, asked: Spec, trials: int, path: Path, needs_tool: Callable[..., str]
) -> float:
    """The gain that the tuner claims, which is what is counted without it."""
    for missing in available(machine):
        needs_tool(missing.tool)
    progress = tuned(machine, asked, trials, path)
    default, best = progress.default, progress.best
    assert default is not None
    assert best is not None
    assert (default.parameters, progress.faults) == ({}, {})
    before, after = (counted(machine, asked, trial) for trial in (default, best))
    assert (before, after) == (default.value, best.value)
    assert after < before, f"{best.kernel} {best.parameters}"
    assert progress.gain == before / after
    return before / after


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "asked", "least"),
    [
        pytest.param("rv32imc", ternary(5), 1.005, id="rv32imc-ternary-5"),
        pytest.param("rv32imc", dense(2), 1.04, id="rv32imc-dense-2"),
        pytest.param("rv32imc", dense(5), 1.10, id="rv32imc-dense-5"),
        pytest.param("cortex-m4", ternary(2), 1.02, id="cortex-m4-ternary-2"),
        pytest.param("cortex-m4", dense(1), 1.05, id="cortex-m4-dense-1"),
    ],
)
def test_tuned_kernels_take_fewer_instructions(
    machine: str, asked: Spec, least: float, tmp_path: Path, needs_tool: Callable[..., str]
) -> None:
    """Of 20 trials the best is better than the fixed way, by what a model's layers gain here.

    On a Cortex-M4 so few trials find nothing better for dense layers of two rows, or of five with
    256 outputs: there it is one row.
    """
    assert check_gain(machine, asked, TRIALS, tmp_path / "db", needs_tool) >= least
