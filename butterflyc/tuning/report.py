"""What a tuner found: per kernel the default way, the best one, the gain, and what was tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from .trial import METHODS, Trial
from .tuner import CallProgress


@attrs.frozen
class Report:
    """``found`` of each call of a model that can be made in more than one way.

    Figures are by ``method`` and ``instrument``; trials lie in the file ``database``.
    """

    target: str
    method: str
    instrument: str
    database: Path
    found: Sequence[CallProgress]
    seconds: float
    interrupted: bool = False

    @property
    def new_trials(self) -> int:
        """How many ways this run has measured."""
        return sum(len(each.trials) - each.earlier for each in self.found)

    @property
    def gain(self) -> float | None:
        """How many times as long all these kernels take by default as by their best ways."""
        known = [each for each in self.found if each.gain is not None]
        before = sum(_taking(each, each.default) for each in known)
        after = sum(_taking(each, each.default) / (each.gain or 1.0) for each in known)
        return before / after if after else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return {
            "target": self.target,
            "method": self.method,
            "unit": METHODS[self.method],
            "instrument": self.instrument,
            "database": str(self.database),
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "new_trials": self.new_trials,
            "gain": self.gain,
            "kernels": [_kernel(each) for each in self.found],
        }


def _taking(progress: CallProgress, trial: Trial | None) -> float:
    """Of one inference, what all these calls take by a way."""
    return progress.call.count * (trial.value or 0.0) if trial else 0.0


def _kernel(progress: CallProgress) -> dict[str, Any]:
    call, confirmed = progress.call, progress.confirmed
    return {
        "call": call.key,
        "nodes": list(call.nodes),
        "calls": call.count,
        "ways": len(call.ways),
        "left_out": call.left_out,
        "trials": len(progress.trials),
        "earlier": progress.earlier,
        "hints": progress.hints,
        "faults": _plain(progress.faults),
        "default": _way(progress.default),
        "best": _way(progress.best),
        "confirmed": attrs.asdict(confirmed) if confirmed else None,
        "gain": progress.gain,
        "best_so_far": progress.best_so_far,
    }


def _way(trial: Trial | None) -> dict[str, Any] | None:
    if trial is None:
        return None
    held = {"kernel": trial.kernel, "parameters": dict(sorted(trial.parameters.items()))}
    return {**held, "value": trial.value, "fault": trial.fault}


def _plain(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
