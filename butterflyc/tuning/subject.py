"""What there is to tune in a model, or in one that was compiled: calls of kernels, for one core."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from ..build import before_kernels, lower
from ..compiler.errors import UsageError
from ..compiler.ir import Graph
from ..passes.base import Pass
from ..passes.budget import Budgets
from ..program import Program, load
from ..source import open_model
from ..targets.registry import Core, core_from, family_of, load_core
from .calls import Call, calls_of

Told = Callable[[str], None]


@attrs.frozen
class Subject:
    """What is tuned, for ``core``: ``lowered`` gives its graph before kernels were chosen, and the
    passes that follow."""

    core: Core
    lowered: Callable[[], tuple[Graph, Sequence[Pass]]]

    def calls(self, only: str = "") -> list[Call]:
        """The calls whose text holds ``only`` and that can be made in more than one way.

        Raises what `compile` raises of the model.
        """
        return [call for call in calls_of(*self.lowered()) if only in call.key]


def subject_of(
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
    progress: Told = lambda _: None,
) -> Subject:
    """What ``model`` is, which is given as `tune` takes it. Raises UsageError for a target beside a
    program, UnknownName for one that there is none of."""
    budgets = {"act_bits": act_bits, "weight_snr": weight_snr, "angles": angles}
    program = _program(model)
    if program is not None:
        own = {"target": target, "target_file": target_file, "mode": mode, **budgets}
        _refuse_options(program, {**own, "calibration": calibration})
        core = core_from(program.manifest["core"])
        return Subject(core, lambda: _of_program(program, core))
    core = load_core(target or "host", Path(target_file) if target_file else None)
    return Subject(
        core, lambda: _of_model(model, example_inputs, core, mode, calibration, budgets, progress)
    )


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


def _of_program(program: Program, core: Core) -> tuple[Graph, Sequence[Pass]]:
    """The graph of a program before kernels were chosen, and the passes that follow."""
    graph = program.stages[before_kernels(program.manifest["stages"])]
    return graph, family_of(core).passes(core, program.mode)


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
    mode = mode or family_of(core).MODES[0]
    asked = Budgets.asked(mode, **budgets)
    source = replace(open_model(model, examples, progress), budgets=asked)
    if calibration is not None:
        source = replace(source, calibration=np.asarray(calibration))
    built = lower(source, core, mode, "bfly", progress=progress)
    return built.unselected, built.passes
