"""Verifying an artefact against the model it came from: eager PyTorch, every pass, near-ties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .compiler.errors import BadInput, UsageError
from .compiler.ir import Graph
from .compiler.ir.interpret import interpret
from .compiler.run.native import Native
from .passes.force_routing import ForceRouting
from .program import Program
from .source import eager, open_model
from .verify import Case, Verification, golden, golden_cases, verify, verify_stages

Progress = Callable[[str], None]
# Lossy passes may change the result of a model by this much, relative: their stated budgets.
BUDGETS = {"quantize_activations": 0.05}
BISECT_SAMPLES = 4


def check(
    program: Program,
    against: Any = None,
    samples: Sequence[np.ndarray] | None = None,
    labels: np.ndarray | None = None,
    *,
    bisect: bool = False,
    progress: Progress = lambda _: None,
) -> Verification:
    """Compare ``program`` with ``against``: a model as `compile` takes it, or a torch module.

    ``samples`` are arrays with one axis more rows than the compiled batch; without them the golden
    inputs are used. Without ``against`` the golden pairs are. Raises UsageError if ``bisect`` has
    nothing to work on.
    """
    if against is None:
        outcome = verify(program, labels=labels, progress=progress)
        return _with_stages(outcome, program, program.stages, None, progress) if bisect else outcome
    from .build import Lowered, lower
    from .targets.registry import core_from

    examples = None
    if not isinstance(against, str):
        import torch

        examples = tuple(torch.zeros(t.shape, dtype=_torch_dtype(t.dtype)) for t in program.inputs)
    source = open_model(against, examples, progress)
    core = core_from(program.manifest["core"])
    if program.fresh_stages:
        built = Lowered(core, program.mode, program.name, program.fresh_stages, ())
    else:
        built = lower(source, core, program.mode, program.name, progress=progress)
    batches = split_batches(program, samples) if samples is not None else golden(program)[0]
    progress(f"running PyTorch on {len(batches)} samples")
    cases = []
    for batch in batches:
        model = eager(source.module, batch)[0]
        wanted = model if program.mode == "f32" else interpret(built.last, *batch)[0]
        cases.append(Case(batch, wanted, model))
    outcome = verify(
        program,
        cases,
        labels,
        routing=built.stages["capture"],
        forced=_forced(built, program),
        against="PyTorch" if program.mode == "f32" else "the interpreter; PyTorch for top-1",
        progress=progress,
    )
    if bisect:
        return _with_stages(outcome, program, built.stages, batches, progress)
    return outcome


def split_batches(program: Program, samples: Sequence[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
    """``samples`` as tuples of arrays of the compiled size. Raises BadInput if they do not fit."""
    types = program.inputs
    if len(samples) != len(types):
        raise BadInput(f"{program.name} takes {len(types)} inputs, got {len(samples)} arrays")
    sizes = {len(x) // t.shape[0] for x, t in zip(samples, types, strict=True)}
    fits = all(
        x.shape[1:] == t.shape[1:] and len(x) % t.shape[0] == 0 and x.dtype == t.storage
        for x, t in zip(samples, types, strict=True)
    )
    if not fits or len(sizes) != 1:
        got = ", ".join(f"{x.dtype}{list(x.shape)}" for x in samples)
        raise BadInput(
            f"samples are {got}, {program.name} takes {', '.join(map(str, types))}",
            help="the first axis may be any multiple of the compiled one",
        )
    parts = [np.split(x, sizes.copy().pop()) for x in samples]
    return list(zip(*parts, strict=True))


def _torch_dtype(dtype: str) -> Any:
    import torch

    names = {"f32": "float32", "i64": "int64", "i32": "int32", "bool": "bool"}
    return getattr(torch, names[dtype])


def _forced(built: Any, program: Program) -> Callable[..., np.ndarray]:
    """The compiled model with the chosen experts as further inputs, built when first called."""
    library: list[Native] = []

    def run(*arrays: np.ndarray) -> np.ndarray:
        if not library:
            library.append(_build_forced(built, program.name))
        return library[0](*arrays)[0]

    return run


def _build_forced(built: Any, name: str) -> Native:
    from .build import family_of

    family = family_of(built.core)
    passes = family.passes(built.core, built.mode)
    names = [step.name for step in passes]
    at = names.index("select_kernels")
    graph: Graph = ForceRouting()(built.stages[names[at - 1]])
    for step in passes[at:]:
        graph = step(graph)
    library = family.emit(graph, built.core, name)[f"lib{name}.so"]
    types = [n.type for n in graph.inputs], [n.type for n in graph.outputs]
    return Native(library, name, *types, int(graph.notes["arena_bytes"]))  # type: ignore[arg-type]


def _with_stages(
    outcome: Verification,
    program: Program,
    stages: Any,
    batches: Sequence[tuple[np.ndarray, ...]] | None,
    progress: Progress,
) -> Verification:
    """``outcome`` with one line a pass; the worst sample is among those that are interpreted."""
    if batches is None:
        batches = [case.inputs for case in golden_cases(program)]
    held = all(
        str(n["digest"]) in graph.constants
        for graph in stages.values()
        for n in graph.nodes
        if n.op == "constant"
    )
    if not held:
        raise UsageError(
            "--bisect needs the constants of every stage, which this artefact does not hold",
            help="give --against MODEL, or compile with --keep-stages",
        )
    chosen = [batches[outcome.worst_sample], *batches[:BISECT_SAMPLES]]
    reports = verify_stages(stages, chosen, BUDGETS, progress)
    failing = next((stage.stage for stage in reports if not stage.passed), None)
    if failing is None and not outcome.passed:
        failing = "emit"
    passed = outcome.passed and failing is None
    return replace(outcome, stages=reports, first_failing_stage=failing, passed=passed)
