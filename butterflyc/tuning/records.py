"""What was measured, for `compile`: the best way known of each call, and where it was taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from ..compiler.errors import Unsupported, UsageError
from ..compiler.ir import Graph
from ..kernels.record import Spec
from ..passes.base import Pass
from ..passes.select_kernels import spec_of
from ..targets.registry import Core
from .calls import asking, key_of, select_of
from .database import Database, default_path
from .exchange import read_trials
from .meters import meter_of, tools
from .trial import METHODS, Task, Trial

# Where records are: a file, the user's own, or nowhere.
Where = str | Path | bool


@attrs.frozen
class Records:
    """The best trial of each call of a target, and how many others were left aside, and why."""

    best: Mapping[str, Trial] = attrs.field(factory=dict)
    ignored: Mapping[str, int] = attrs.field(factory=dict)

    def tuned(self, spec: Spec) -> tuple[str, Mapping[str, int]] | None:
        """The kernel and the parameters for ``spec``, as `SelectKernels` takes them."""
        trial = self.best.get(key_of(spec))
        return (trial.kernel, trial.parameters) if trial else None

    def taken(self, graph: Graph, last: Graph, passes: Iterable[Pass]) -> dict[str, Any]:
        """What a compilation took: of ``graph``, which kernels were chosen for, to the ``last``.

        How many ``kernels`` there are of which ways can be measured, how many are ``tuned``, the
        ``records`` that say so, and how many were ``ignored``, by reason.
        """
        calls = asking(graph, select_of(passes))
        ways = {n.name: (n.notes["kernel"], dict(spec_of(n).parameters)) for n in last.nodes
                if "kernel" in n.notes}  # fmt: skip
        found = []
        for key, nodes in calls.items():
            trial = self.best.get(key)
            names = [node.name for node in nodes]
            if trial and any(
                ways.get(name) == (trial.kernel, dict(trial.parameters)) for name in names
            ):
                found.append({"nodes": names, **attrs.asdict(trial)})
        return {
            "kernels": len(calls),
            "tuned": len(found),
            "records": found,
            "ignored": dict(sorted(self.ignored.items())),
        }


def records_for(core: Core, where: Where = True) -> Records:
    """What was measured for ``core``, in the file ``where``: a database, or lines of it (.jsonl).

    With True in the user's database, if there is one; with False nothing is taken. Raises
    UsageError for a file that is not there, and what reading it raises.
    """
    if where is False:
        return Records()
    try:
        meter = meter_of(core)
    except Unsupported:
        return Records()
    ours, machine = tools(core), meter.features()
    best: dict[str, list[Trial]] = {}
    ignored: Counter[str] = Counter()
    for trial in _read(where, meter.target):
        if trial.tools != ours:
            ignored["made by other tools"] += 1
        elif not _fits(trial.task, meter.method, machine):
            ignored["measured on another machine"] += 1
        else:
            best.setdefault(trial.task.spec, []).append(trial)
    chosen = {key: _best(trials) for key, trials in best.items()}
    return Records({key: trial for key, trial in chosen.items() if trial}, ignored)


def _read(where: Where, target: str) -> tuple[Trial, ...]:
    path = default_path() if where is True else Path(str(where))
    if not path.is_file():
        if where is True:
            return ()
        raise UsageError(
            f"{path} does not exist",
            help="give a file that `butterflyc tune` wrote, or nothing for your own records",
        )
    if path.suffix == ".jsonl":
        return tuple(trial for trial in read_trials(path) if trial.task.target == target)
    with Database(path, read_only=True) as database:
        return database.of_target(target)


def _fits(task: Task, method: str, machine: tuple[str, ...]) -> bool:
    """Whether figures of ``task`` are of what is compiled for, which is measured by ``method``.

    A core that is not here is one of any board, or any GPU: a time of one says more than a model.
    """
    if task.method == "time" and (method != "time" or not machine):
        return True
    return task.features == machine


def _best(trials: list[Trial]) -> Trial | None:
    """Of one call: by the method nearest to the truth, and its instrument of most trials."""
    groups: dict[Task, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.task, []).append(trial)

    def rank(task: Task) -> tuple[int, int, str, tuple[str, ...]]:
        nearest = list(METHODS).index(task.method)
        return nearest, -len(groups[task]), task.instrument, task.features

    first = groups[min(groups, key=rank)]
    good = [trial for trial in first if trial.value is not None]
    return min(good, key=lambda trial: (trial.value, trial.way), default=None)
