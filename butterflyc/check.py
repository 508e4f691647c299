"""Verifying an artefact against the model it came from: eager PyTorch, every pass, near-ties."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from .calling import Runner
from .compiler.codes import interpret_real, real
from .compiler.errors import BadInput, UsageError
from .compiler.ir import Graph
from .compiler.run.hosted import Hosted
from .compiler.run.native import Native
from .on_gpu import loaded
from .passes.budget import Budgets
from .passes.force_routing import ForceRouting
from .passes.select_kernels import without_kernels
from .placed import Placed
from .program import Program
from .source import Source, open_model
from .targets.registry import core_from, family_of
from .verify import Case, Verification, golden, golden_cases, verify, verify_stages

Progress = Callable[[str], None]
# Lossy passes may change the result of a model by this much, relative: their stated budgets.
BUDGETS = {"quantize_activations": 0.05, "quantize": 0.3, "half_products": 0.05}
BUDGETS |= {"quantize_angles": 0.1}
# Of codes of 7 bits, whose steps are twice as large.
SEVEN_BITS = {"quantize_activations": 0.1}
BISECT_SAMPLES = 4


def check(
    program: Program,
    against: Any = None,
    samples: Sequence[np.ndarray] | None = None,
    labels: np.ndarray | None = None,
    *,
    bisect: bool = False,
    on: Placed | None = None,
    progress: Progress = lambda _: None,
) -> Verification:
    """Compare ``program`` with ``against``: a model as `compile` takes it, or a torch module.

    ``samples`` are arrays with one axis more rows than the compiled batch; without them the golden
    inputs are used. Without ``against`` the golden pairs are. ``on`` is where the program runs, if
    not on this machine. Raises UsageError if ``bisect`` has nothing to work on.
    """
    if against is None:
        outcome = verify(program, labels=labels, on=on, progress=progress)
        return _with_stages(outcome, program, program.stages, None, progress) if bisect else outcome
    from .compiler.capture.export import capture

    examples = None
    if not isinstance(against, str):
        import torch

        if not isinstance(against, torch.export.ExportedProgram):  # which has its own
            zeros = (np.zeros(t.shape, real(t).storage) for t in program.inputs)
            examples = tuple(torch.from_numpy(x) for x in zeros)
    source = open_model(against, examples, progress)
    reference = capture(source.module, source.examples, progress=progress).graph

    last = program.stages[list(program.stages)[-1]]
    batches = split_batches(program, samples) if samples is not None else golden(program)[0]
    progress(f"running PyTorch on {len(batches)} samples")
    cases = []
    for batch in batches:
        model = source.eager(batch)[0]
        wanted = model if program.is_exact else interpret_real(last, *batch)[0]
        cases.append(Case(batch, wanted, model))
    outcome = verify(
        program,
        cases,
        labels,
        routing=reference,
        forced=_forced(program, on, progress),
        against="PyTorch" if program.is_exact else "the interpreter; PyTorch for top-1",
        on=on,
        progress=progress,
    )
    if not bisect:
        return outcome
    stages = program.stages if program.fresh_stages else _lowered_again(program, source, progress)
    return _with_stages(outcome, program, stages, batches, progress)


def split_batches(program: Program, samples: Sequence[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
    """``samples`` as tuples of arrays of the compiled size. Raises BadInput if they do not fit."""
    types = tuple(map(real, program.inputs))
    if len(samples) != len(types):
        raise BadInput(f"{program.name} takes {len(types)} inputs, got {len(samples)} arrays")
    ranked = [(x, t) for x, t in zip(samples, types, strict=True) if x.ndim == t.rank >= 1]
    sizes = {len(x) // t.shape[0] for x, t in ranked}
    fits = len(ranked) == len(types) and all(
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


def _lowered_again(program: Program, source: Source, progress: Progress) -> Mapping[str, Graph]:
    """The stages of ``source``, lowered as ``program`` was."""
    from .build import lower

    core = core_from(program.manifest["core"])
    source = replace(source, budgets=Budgets.of(program.manifest))
    again = lower(
        source, core, program.mode, program.name, progress=progress, threads=program.threads
    )
    return again.stages


def _forced(program: Program, on: Placed | None, progress: Progress) -> Callable[..., np.ndarray]:
    """The compiled model with the chosen experts as further inputs, built when first called.

    It runs where the program does.
    """

    @cache
    def runner() -> Runner:
        return forced_runner(program, on, progress)

    return lambda *arrays: runner().many([arrays])[0][0]


def forced_runner(
    program: Program, on: Placed | None, progress: Progress = lambda _: None
) -> Runner:
    """The last stage of ``program`` with its routing as inputs, emitted as the program was."""
    from .build import ports

    core = core_from(program.manifest["core"])
    family = family_of(core)
    passes = family.passes(core, program.mode)
    graph = ForceRouting()(without_kernels(program.stages[list(program.stages)[-1]]))
    for step in passes[[step.name for step in passes].index("select_kernels") :]:
        graph = step(graph)
    files = family.emit(graph, core, program.name)
    if program.is_for_gpu:
        sections = {f"kernels/{file}": content for file, content in files.items()}
        interpret = on is not None and on.on_gpu is not None and on.on_gpu.device.type == "cpu"
        return loaded(graph, program.manifest["core"], sections, program.name, interpret)
    types = [n.type for n in graph.inputs], [n.type for n in graph.outputs]
    if on is not None and on.hosted is not None:
        manifest = {**program.manifest, **ports(graph)}
        (code,) = family.programs(core, manifest, files, progress).values()
        return Hosted(code, *types, on.hosted.place, progress)
    library = files[f"lib{program.name}.so"]
    return Native(library, program.name, *types, int(graph.notes["arena_bytes"]))  # type: ignore[arg-type]


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
    budgets = BUDGETS | (SEVEN_BITS if program.manifest.get("act_bits") == 7 else {})
    chosen = [batches[outcome.worst_sample], *batches[:BISECT_SAMPLES]]
    reports = verify_stages(stages, chosen, budgets, progress)
    failing = next((stage.stage for stage in reports if not stage.passed), None)
    if failing is None and not outcome.passed:
        failing = "emit"
    passed = outcome.passed and failing is None
    return replace(outcome, stages=reports, first_failing_stage=failing, passed=passed)
