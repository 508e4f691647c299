"""Tuning a model, or one that was compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import attrs

from .database import Database, default_path
from .engine import engine as started
from .measure import HERE
from .meters import meter_of, task_of, tools
from .report import Report
from .subject import Told, subject_of
from .trial import Trial
from .tuner import CallProgress, Tuner, budget_of
from .worker import DIED, LATE

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
    angles: str | None = None,
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
    subject = subject_of(
        model,
        example_inputs,
        target=target,
        mode=mode,
        calibration=calibration,
        act_bits=act_bits,
        weight_snr=weight_snr,
        angles=angles,
        target_file=target_file,
        progress=progress,
    )
    # What cannot be measured is refused before anything is captured.
    meter = meter_of(subject.core, on)
    ours, whole = tools(subject.core), task_of(meter)
    calls, path = subject.calls(only), Path(database or default_path())
    tasks = [attrs.evolve(whole, spec=call.key) for call in calls]
    start = perf_counter()
    running_on = started(engine, subject.core, on, meter, whole.instrument)
    with Database(path) as held, running_on as running:
        for task in tasks if retry else ():
            held.forget(task, ours, (LATE, DIED))
        tuner = Tuner(calls, tasks, ours, held, running, spent, seed, on_trial)
        found, interrupted = tuner.run()
    method, seconds = meter.method, perf_counter() - start
    return Report(subject.core.name, method, whole.instrument, path, found, seconds, interrupted)
