"""Tuning a model, or one that was compiled: what there is to tune, how, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import attrs
import numpy as np

from ..build import before_kernels, family_of, lower
from ..compiler.errors import UsageError
from ..compiler.ir import Graph
from ..passes.base import Pass
from ..program import Program, load
from ..source import open_model
from ..targets.registry import Core, core_from, load_core
from .calls import Call, calls_of
from .database import Database, default_path
from .engine import engine as started
from .measure import HERE
from .meters import meter_of, task_of, tools
from .report import Report
from .trial import Trial
from .tuner import Budget, CallProgress, Tuner, budget_of
from .worker import DIED, LATE

Told = Callable[[str], None]
OnTrial = Callable[[Trial, CallProgress], None]


def tune(
    model: Any,
    example_inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    target: str | None = None,
    mode: str | None = None,
    calibration: Any = None,
    act_bits: int | None = None,
    weight_snr: float | None = None,
    target_file: str | Path | None = None,
    budget: str = "5m",
    only: str = "",
    engine: str = "local",
    on: str = HERE,
    retry: bool = False,
    database: str | Path | None = None,
    seed: int = 0,
    on_trial: OnTrial = lambda trial, progress: None,
    progress: Told = lambda _: None,
) -> Report:
    """Measure ways to compute the kernels of ``model``, so that `compile` takes the best.

    ``model`` and what goes with it are as `compile` takes them, for ``target`` (by default this
    machine); or ``model`` is a `Program`, or the path of one, which was compiled for its target.
    ``budget`` is a time (``90s``, ``5m``, ``1h``) or how many trials each kernel gets (``64``).
    Only calls whose text holds ``only`` are tuned: ``linear``, ``i8[65x256]``. ``engine`` is where
    measurements start: here, or ``ray`` or ``ray://HOST:PORT`` on a cluster, for what is counted.
    With ``on="ssh:user@host"`` kernels for an ARM core are timed on that board. Trials go to
    ``database``, by default the user's, one at a time: what was measured once is not
    measured again, and after ^C or a crash the same call goes on (docs/tuning.md). ``on_trial`` is
    called with each. Ways that compute something wrong are disqualified, and so are those that
    crash or take too long, until they are tried again with ``retry``.

    Raises UsageError (budget, a target beside a program), Unsupported for a target that nothing
    here measures, ToolMissing with what to install, Damaged or CannotWrite for the database, and
    what `compile` raises of the model.
    """
    spent = budget_of(budget)
    program = _program(model)
    budgets = {"act_bits": act_bits, "weight_snr": weight_snr}
    if program is not None:
        own = {"target": target, "target_file": target_file, "mode": mode, **budgets}
        _refuse_options(program, {**own, "calibration": calibration})
        core, asked = _of_program(program)
    else:
        core = load_core(target or "host", Path(target_file) if target_file else None)
        asked = _of_model(model, example_inputs, core, mode, calibration, budgets, progress)
    progress("looking for kernels with a choice")
    calls = [call for call in calls_of(*asked) if only in call.key]
    path = Path(database or default_path())
    return _search(calls, core, on, spent, path, seed, engine, retry, on_trial)


def _search(
    calls: Sequence[Call],
    core: Core,
    place: str,
    budget: Budget,
    path: Path,
    seed: int,
    engine: str,
    retry: bool,
    on_trial: OnTrial,
) -> Report:
    meter = meter_of(core, place)
    whole = task_of(meter)
    tasks = [attrs.evolve(whole, spec=call.key) for call in calls]
    start = perf_counter()
    instrument = whole.instrument
    with Database(path) as database, started(engine, core, place, meter, instrument) as running:
        for task in tasks if retry else ():
            database.forget(task, tools(), (LATE, DIED))
        tuner = Tuner(calls, tasks, tools(), database, running, budget, seed, on_trial)
        found, interrupted = tuner.run()
    seconds = perf_counter() - start
    return Report(core.name, meter.method, instrument, path, found, seconds, interrupted)


def _program(model: Any) -> Program | None:
    """The compiled program that ``model`` is or names; None for a model that is to be compiled."""
    if isinstance(model, Program):
        return model
    if isinstance(model, str | Path):
        path = Path(model)
        if path.suffix == ".bfly" or path.is_dir():
            return load(path)
    return None


def _refuse_options(program: Program, given: Mapping[str, Any]) -> None:
    if names := [name for name, value in given.items() if value is not None]:
        raise UsageError(
            f"{program.name} was compiled for {program.target} in mode {program.mode}: "
            f"{', '.join(names)} cannot be given beside it",
            help="give the model that it was compiled from",
        )


def _of_program(program: Program) -> tuple[Core, tuple[Graph, Sequence[Pass]]]:
    """The core of a program, its graph before kernels were chosen, and the passes that follow."""
    core = core_from(program.manifest["core"])
    graph = program.stages[before_kernels(program.manifest["stages"])]
    return core, (graph, family_of(core).passes(core, program.mode))


def _of_model(
    model: Any,
    examples: Any,
    core: Core,
    mode: str | None,
    calibration: Any,
    budgets: Mapping[str, Any],
    progress: Told,
) -> tuple[Graph, Sequence[Pass]]:
    """The same of a model that is to be compiled."""
    source = open_model(model, examples, progress)
    source = replace(source, **{name: b for name, b in budgets.items() if b is not None})
    if calibration is not None:
        source = replace(source, calibration=np.asarray(calibration))
    built = lower(source, core, mode or family_of(core).MODES[0], "bfly", progress=progress)
    return built.unselected, built.passes
