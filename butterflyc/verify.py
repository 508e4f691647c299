"""Does a compiled model compute what its source does? Per sample, per expert choice, per pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .compiler.codes import interpret_real
from .compiler.errors import BadInput
from .compiler.ir import Graph
from .compiler.tensors import unpack_arrays
from .placed import Placed
from .program import Program

Progress = Callable[[str], None]

# A routing margin below this is a near-tie: rounding may rightly choose the other expert.
# In halves what a router reads is rounded, to a few parts of a thousand.
NEAR_TIE = 1e-6
NEAR_TIES = {"f16": 1e-3, "i8": 3e-3, "bf16": 1e-2}
# Largest relative error of a sample (max |y - reference| / max |reference|), by mode: against
# PyTorch, and against the interpreter in the same mode where there are integers; int8 is exact.
LIMITS = {"f32": 1e-5, "a8": 2e-3, "int8": 0.0, "f16": 5e-3, "i8": 1e-2, "bf16": 4e-2}
# What one pass may change a sample by: f32 round-off, or the budget of a lossy pass.
STAGE_LIMIT = 1e-5


@dataclass(frozen=True)
class StageReport:
    """How far the graph after a pass is from the graph before it, over all samples."""

    stage: str
    exact: bool
    max_rel: float
    routing_agreement: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.max_rel <= self.limit


@dataclass(frozen=True)
class Verification:
    """Errors are against the reference of the mode: PyTorch for f32, else the interpreter.

    ``top1_agreement``, ``routing_agreement`` and ``model_rel_p99`` (99th percentile) are always
    against the model. ``near_ties`` are numbers of samples that the errors leave out: they are
    compared with the choice of experts given (``forced_max_rel``). On an emulated machine
    without an operating system the ``instructions`` of each run are counted, and nobody sees which
    experts are chosen: ``routing_agreement`` is None.
    """

    passed: bool
    against: str
    samples: int
    limit: float
    max_abs: float
    max_rel: float
    rel_p90: float
    model_rel_p99: float
    bit_identical: bool
    top1_agreement: float
    routing_agreement: float | None
    accuracy: float | None
    model_accuracy: float | None
    near_ties: tuple[int, ...]
    forced_max_rel: float | None
    worst_sample: int
    stages: tuple[StageReport, ...] = ()
    first_failing_stage: str | None = None
    instructions: tuple[int, ...] = ()
    stack_bytes: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with the keys that ``verify --json`` promises."""
        data = {**vars(self), "pass": self.passed}
        del data["passed"]
        data["stages"] = [{**vars(stage), "pass": stage.passed} for stage in self.stages]
        return data


def relative_errors(outputs: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """For each sample (first axis): max |y - reference| / max |reference|."""
    rows = reference.reshape(len(reference), -1).astype(np.float64)
    difference = np.abs(outputs.reshape(rows.shape).astype(np.float64) - rows).max(1)
    scale = np.abs(rows).max(1)
    return difference / np.where(scale > 0, scale, 1)


def golden(program: Program) -> tuple[list[tuple[np.ndarray, ...]], dict[str, list[Any]]]:
    """The samples that an artefact carries, and what was expected of them, by kind."""
    arrays = unpack_arrays(program.artefact.section("golden.safetensors"))
    samples: list[tuple[np.ndarray, ...]] = []
    expected: dict[str, list[Any]] = {"eager": [], "expected": []}
    for i in sorted({key.split(".")[0] for key in arrays}):

        def of(kind: str, sample: str = i) -> tuple[np.ndarray, ...]:
            count = sum(key.startswith(f"{sample}.{kind}.") for key in arrays)
            return tuple(arrays[f"{sample}.{kind}.{j}"] for j in range(count))

        samples.append(of("input"))
        for kind in expected:
            expected[kind].append(of(kind))
    return samples, expected


@dataclass(frozen=True)
class Observed:
    """First output, chosen experts and smallest routing margin of one run of a graph."""

    output: np.ndarray
    experts: tuple[np.ndarray, ...]
    margin: float


def observe(graph: Graph, *inputs: np.ndarray) -> Observed:
    """Interpret ``graph`` and watch its routing."""
    experts: list[np.ndarray] = []
    margins = [np.inf]
    scores: dict[Any, np.ndarray] = {}
    read = {node.operands[0] for node in graph.nodes if node.op == "top_k"}

    def watch(node: Any, value: Any) -> None:
        if node in read:
            scores[node] = value
        if node.op == "top_k":
            experts.append(value[1])
            k, ranked = int(node["k"]), -np.sort(-scores[node.operands[0]], axis=-1)
            if ranked.shape[-1] > k:
                margins.append(float((ranked[..., k - 1] - ranked[..., k]).min()))

    output = interpret_real(graph, *inputs, observe=watch)[0]
    return Observed(output, tuple(experts), min(margins))


@dataclass(frozen=True)
class Case:
    """One sample: inputs of the compiled size; what the mode's reference and the model say."""

    inputs: tuple[np.ndarray, ...]
    wanted: np.ndarray
    model: np.ndarray


def golden_cases(program: Program) -> list[Case]:
    """The samples that an artefact carries, with what was expected of them."""
    samples, expected = golden(program)
    kind = "eager" if program.is_exact else "expected"
    pairs = zip(samples, expected[kind], expected["eager"], strict=True)
    return [Case(inputs, wanted[0], model[0]) for inputs, wanted, model in pairs]


def verify(
    program: Program,
    cases: Sequence[Case] | None = None,
    labels: np.ndarray | None = None,
    *,
    routing: Graph | None = None,
    forced: Callable[..., np.ndarray] | None = None,
    against: str = "golden pairs",
    on: Placed | None = None,
    progress: Progress = lambda _: None,
) -> Verification:
    """Run ``program`` on ``cases`` (those it carries, if None) and compare its first output.

    ``routing`` is a graph whose choice of experts counts as the model's (default: the last stage);
    ``forced(*inputs, *experts)`` runs the compiled model with that choice given, for near-ties.
    ``on`` is where the program runs, if not on this machine. Raises BadInput if there is no case.
    """
    cases = golden_cases(program) if cases is None else cases
    if not cases:
        raise BadInput("there is no sample to verify on")
    graph = routing or program.stages[list(program.stages)[-1]]
    progress(f"running {program.name} on {len(cases)} samples")
    samples = [case.inputs for case in cases]
    earlier = len(on.instructions) if on else 0
    got = np.stack([outputs[0] for outputs in (on or program).run_each(samples)])
    routed = (on or program.on("native")).routing_each(samples)
    progress(f"interpreting {len(cases)} samples for their routing")
    seen = [observe(graph, *case.inputs) for case in cases]

    wanted = np.stack([case.wanted for case in cases])
    model = np.stack([case.model for case in cases])
    # Integers decide ties as the interpreter does.
    exact = LIMITS[program.mode] == 0
    tie = NEAR_TIES.get(program.mode, NEAR_TIE)
    near = [i for i, one in enumerate(seen) if one.margin < tie and not exact]
    clear = np.setdiff1d(np.arange(len(cases)), near)
    errors = relative_errors(got, wanted)
    limit = LIMITS[program.mode]
    max_rel = float(errors[clear].max(initial=0))
    forced_max = _forced_error(near, cases, seen, forced)
    tops, model_tops = (y.reshape(-1, y.shape[-1]).argmax(-1) for y in (got, model))
    truth = None if labels is None else np.asarray(labels).reshape(-1)
    return Verification(
        passed=max_rel <= limit and (forced_max is None or forced_max <= limit),
        against=against,
        samples=len(cases),
        limit=limit,
        max_abs=float(np.abs(got.astype(np.float64) - wanted).max()),
        max_rel=max_rel,
        rel_p90=float(np.quantile(errors, 0.9)),
        model_rel_p99=float(np.quantile(relative_errors(got, model), 0.99)),
        bit_identical=np.array_equal(got, wanted),
        top1_agreement=float((tops == model_tops).mean()),
        routing_agreement=None
        if routed is None
        else float(np.mean(list(map(same_experts, routed, seen)))),
        accuracy=None if truth is None else float((tops == truth).mean()),
        model_accuracy=None if truth is None else float((model_tops == truth).mean()),
        near_ties=tuple(near),
        forced_max_rel=forced_max,
        worst_sample=int(errors.argmax()),
        instructions=on.instructions[earlier:] if on else (),
        stack_bytes=on.stack_bytes if on else None,
    )


def same_experts(routed: Sequence[np.ndarray], seen: Observed) -> float:
    """The share of tokens, over all layers, whose set of chosen experts is the same; 1 if none."""
    shares = [
        (np.sort(a, axis=-1) == np.sort(b, axis=-1)).all(-1).mean()
        for a, b in zip(routed, seen.experts, strict=True)
    ]
    return float(np.mean(shares)) if shares else 1.0


def _forced_error(
    near: Sequence[int],
    cases: Sequence[Case],
    seen: Sequence[Observed],
    forced: Callable[..., np.ndarray] | None,
) -> float | None:
    """The largest error on near-ties with the model's choice of experts given."""
    if not near or forced is None:
        return None
    got = np.stack([forced(*cases[i].inputs, *seen[i].experts) for i in near])
    return float(relative_errors(got, np.stack([seen[i].output for i in near])).max())


def verify_stages(
    stages: Mapping[str, Graph],
    samples: Sequence[tuple[np.ndarray, ...]],
    budgets: Mapping[str, float],
    progress: Progress = lambda _: None,
) -> tuple[StageReport, ...]:
    """Each stage against the one before it, by interpretation in f32.

    ``budgets`` gives the limit of lossy passes by name; others have round-off. Of a lossy pass only
    those samples count that it routes as before.
    """
    reports: list[StageReport] = []
    before: list[Observed] | None = None
    for stage, graph in stages.items():
        progress(f"interpreting stage {stage}")
        now = [observe(graph, *sample) for sample in samples]
        if before is not None:
            errors = relative_errors(
                np.stack([o.output for o in now]), np.stack([o.output for o in before])
            )
            agree = [same_experts(a.experts, b) for a, b in zip(now, before, strict=True)]
            # A lossy pass may send a token to other experts, which may change anything.
            counts = [stage not in budgets or share == 1 for share in agree]
            reports.append(
                StageReport(
                    stage,
                    stage not in budgets,
                    float(errors[counts].max(initial=0)),
                    float(np.mean(agree)),
                    budgets.get(stage, STAGE_LIMIT),
                )
            )
        before = now
    return tuple(reports)
