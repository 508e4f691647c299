"""Does a compiled model compute what its source does? Per sample, per expert choice, per pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .compiler.errors import BadInput
from .compiler.ir import Graph
from .compiler.ir.interpret import interpret
from .compiler.tensors import unpack_arrays
from .program import Program

Progress = Callable[[str], None]

# A routing margin below this is a near-tie: rounding may rightly choose the other expert.
NEAR_TIE = 1e-6
# Largest relative error of a sample (max |y - reference| / max |reference|), by mode: against
# PyTorch, and against the interpreter in the same mode for the integer products of a8.
LIMITS = {"f32": 1e-5, "a8": 2e-3}
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
    """``near_ties`` are numbers of samples left out of the error: compared with routing forced."""

    passed: bool
    against: str
    samples: int
    limit: float
    max_abs: float
    max_rel: float
    bit_identical: bool
    top1_agreement: float
    routing_agreement: float
    accuracy: float | None
    reference_accuracy: float | None
    near_ties: tuple[int, ...]
    forced_max_rel: float | None
    worst_sample: int
    stages: tuple[StageReport, ...] = ()
    first_failing_stage: str | None = None

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

    output = interpret(graph, *inputs, observe=watch)[0]
    return Observed(output, tuple(experts), min(margins))


def verify(
    program: Program,
    reference: Callable[..., np.ndarray] | None = None,
    samples: Sequence[tuple[np.ndarray, ...]] | None = None,
    labels: np.ndarray | None = None,
    *,
    source: Graph | None = None,
    forced: Callable[..., np.ndarray] | None = None,
    against: str = "the golden outputs",
    progress: Progress = lambda _: None,
) -> Verification:
    """Compare ``program`` with ``reference`` on ``samples``: tuples of arrays of the compiled size.

    Without them: the golden pairs of the artefact. ``source`` is a graph whose routing counts as
    the reference's (the capture stage); ``forced(*sample, *experts)`` runs the compiled model with
    the choice of experts given, for samples at a near-tie. Raises BadInput for no sample.
    """
    limit = LIMITS[program.mode]
    if samples is None:
        samples, expected = golden(program)
        # f32 answers to PyTorch; a8 to the interpreter, which defines its roundings.
        kind = "eager" if program.mode == "f32" else "expected"
        wanted = [outputs[0] for outputs in expected[kind]]
    else:
        if reference is None:
            raise BadInput("inputs need a model to compare with", help="give --against MODEL")
        progress(f"computing {against} on {len(samples)} samples")
        wanted = [reference(*sample) for sample in samples]
    if not samples:
        raise BadInput("there is no sample to verify on")
    graph = source or program.stages[list(program.stages)[-1]]
    progress(f"running {program.name} on {len(samples)} samples")
    got = [program.run(*sample)[0] for sample in samples]
    routed = [program.routing(*sample) for sample in samples]
    progress("interpreting for the routing")
    seen = [observe(graph, *sample) for sample in samples]

    near = [i for i, one in enumerate(seen) if one.margin < NEAR_TIE]
    errors = relative_errors(np.stack(got), np.stack(wanted))
    clear = np.array([i for i in range(len(samples)) if i not in set(near)], int)
    agree = [
        np.mean([np.array_equal(np.sort(a), np.sort(b)) for a, b in zip(r, s.experts, strict=True)])
        if r
        else 1.0
        for r, s in zip(routed, seen, strict=True)
    ]
    worst = int(errors[clear].argmax()) if len(clear) else 0
    max_rel = float(errors[clear].max(initial=0))
    forced_max = _forced_error(near, samples, seen, graph, forced)
    tops = [np.stack(y).reshape(len(samples), -1).argmax(-1) for y in (got, wanted)]
    truth = None if labels is None else np.asarray(labels).reshape(-1)
    return Verification(
        passed=max_rel <= limit and (forced_max is None or forced_max <= limit),
        against=against,
        samples=len(samples),
        limit=limit,
        max_abs=float(np.abs(np.stack(got) - np.stack(wanted)).max()),
        max_rel=max_rel,
        bit_identical=all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True)),
        top1_agreement=float((tops[0] == tops[1]).mean()),
        routing_agreement=float(np.mean(agree)),
        accuracy=None if truth is None else float((tops[0] == truth).mean()),
        reference_accuracy=None if truth is None else float((tops[1] == truth).mean()),
        near_ties=tuple(near),
        forced_max_rel=forced_max,
        worst_sample=int(clear[worst]) if len(clear) else 0,
    )


def _forced_error(
    near: Sequence[int],
    samples: Sequence[tuple[np.ndarray, ...]],
    seen: Sequence[Observed],
    graph: Graph,
    forced: Callable[..., np.ndarray] | None,
) -> float | None:
    """The largest error on near-ties with the reference's choice of experts given."""
    if not near or forced is None:
        return None
    got = np.stack([forced(*samples[i], *seen[i].experts) for i in near])
    return float(relative_errors(got, np.stack([seen[i].output for i in near])).max())


def verify_stages(
    stages: Mapping[str, Graph],
    samples: Sequence[tuple[np.ndarray, ...]],
    budgets: Mapping[str, float],
    progress: Progress = lambda _: None,
) -> tuple[StageReport, ...]:
    """Each stage against the one before it, by interpretation in f32.

    ``budgets`` gives the limit of lossy passes by name; others have round-off.
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
            agree = [
                np.array_equal(np.sort(a), np.sort(b))
                for one, other in zip(now, before, strict=True)
                for a, b in zip(one.experts, other.experts, strict=True)
            ]
            reports.append(
                StageReport(
                    stage,
                    stage not in budgets,
                    float(errors.max()),
                    float(np.mean(agree)) if agree else 1.0,
                    budgets.get(stage, STAGE_LIMIT),
                )
            )
        before = now
    return tuple(reports)
