"""What is measured in tuning: a task, by some tools, computed in one way."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import attrs

# How a way is measured, and what in: less is better, each time. The nearest to the truth first.
METHODS = {"time": "s", "cycles": "cycles", "instructions": "instructions"}


@attrs.frozen
class Task:
    """A call of a kernel on a machine: ``spec`` is a text of `calls.key_of`.

    ``target`` is a core, ``features`` are what else a figure depends on, as the CPU's name for one
    of time, and ``instrument`` what gave it: an emulator, a C compiler, with versions. Figures of
    one task can be compared; with those of another, nothing can.
    """

    spec: str
    target: str
    features: tuple[str, ...]
    method: str = attrs.field(validator=attrs.validators.in_(tuple(METHODS)))
    instrument: str = ""


@attrs.frozen
class Tools:
    """What made the code: a toolchain with its versions, and the epoch of our own code generation.

    With other tools the same way may be another program, so its figures are hints and no more.
    """

    toolchain: str
    epoch: int


@attrs.frozen
class Trial:
    """One way to compute a task, and what it took; or what is wrong with it.

    A figure is of so many ``rounds``: more are better, where they differ.
    """

    task: Task
    tools: Tools
    kernel: str
    parameters: Mapping[str, int]
    value: float | None = None
    fault: str = ""
    rounds: int = attrs.field(default=1, validator=attrs.validators.ge(1))

    def __attrs_post_init__(self) -> None:
        if (self.value is None) != bool(self.fault):
            raise ValueError("a trial has a figure or a fault")
        if self.value is not None and not 0 <= self.value < math.inf:
            raise ValueError(f"a trial cannot take {self.value}")

    @property
    def way(self) -> tuple[str, str]:
        """Kernel and parameters, as they are told apart."""
        return way_text(self.kernel, self.parameters)


def way_text(kernel: str, parameters: Mapping[str, int]) -> tuple[str, str]:
    """Kernel and parameters as records tell them apart."""
    return kernel, json.dumps(dict(parameters), sort_keys=True)
