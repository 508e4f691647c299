"""What tuning gains, and how good its search is: on this machine, and on spaces known in full.

    python benchmarks/tuning.py gains-f32    the papers' model here, by time and by instructions
    python benchmarks/tuning.py gains-a8     the same with activations as codes
    python benchmarks/tuning.py exhaustive   every way of two of its kernels, and of some elsewhere;
                                             what the search finds there in 64 trials, by 20 seeds

Trials lie in the database that $BUTTERFLYC_TUNE_DB names, and results in `benchmarks/results/`. A
part that was stopped goes on where it was. On a machine that does nothing else.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import butterflyc as bc
from butterflyc.bench.vit import ANGLE_STD
from butterflyc.compiler.files import write_whole
from butterflyc.compiler.run.executions import emulator_version
from butterflyc.compiler.run.kernel_call import call_kernel
from butterflyc.compiler.run.native import cpu_name
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.vit import ViT, ViTConfig
from butterflyc.targets import cpu
from butterflyc.tuning.calls import Call
from butterflyc.tuning.measure import kernel_of, trying
from butterflyc.tuning.report import Report
from butterflyc.tuning.search import Search, Way
from butterflyc.tuning.trial import way_text
from butterflyc.tuning.tuner import CONFIRMING, CallProgress

RESULTS = Path(__file__).parent / "results"
DIGITS = Path(__file__).parents[1] / "models" / "digits.safetensors"
ALL = "100000"
TRIALS, SEEDS = 64, 20
# Of the papers' model here, and of the digits model where figures are exact.
HERE = "butterfly_experts", "f32[768x256]"
ELSEWHERE = {
    "cortex-a72": ("f32[192x64]", "f32[64x256]"),
    "cortex-m4": ("quantized_linear", "quantized_ternary"),
}


def papers_model() -> tuple[ViT, tuple[torch.Tensor]]:
    """d = 256, F = 1024, 7 layers of 8 experts, 65 tokens; weights that nothing trained."""
    torch.manual_seed(0)
    model = ViT(ViTConfig(mlp=ButterflyConfig(angle_std=ANGLE_STD))).eval()
    return model, (torch.rand(1, 3, 32, 32),)


def here(budget: str, only: str = "", mode: str = "f32") -> Report:
    """Of the papers' model on this machine."""
    return bc.tune(*papers_model(), mode=mode, budget=budget, only=only, on_trial=tell)


def elsewhere(target: str, budget: str, only: str) -> Report:
    """Of the digits model for another machine."""
    return bc.tune(str(DIGITS), target=target, budget=budget, only=only, on_trial=tell)


def tell(trial: Any, progress: CallProgress) -> None:
    ways = f"{len(progress.trials)} of {len(progress.call.ways)}"
    print(
        f"{progress.call.key[:60]}: {ways}, x{progress.gain or 0:.3f}", file=sys.stderr, flush=True
    )


def gains(mode: str) -> dict[str, Any]:
    """Of each kernel: the gain in time with its spread, and in instructions."""
    report = here(str(TRIALS), mode=mode)
    rows = [{**row, **counts(p)} for row, p in zip(rows_of(report), report.found, strict=True)]
    facts = {"qemu": emulator_version("x86_64"), "rounds": CONFIRMING, "trials": TRIALS}
    return {**facts, "gain": report.gain, "kernels": rows}


def rows_of(report: Report) -> Iterator[dict[str, Any]]:
    """What is of interest of each kernel."""
    for kernel in report.as_dict()["kernels"]:
        kept = ("call", "calls", "ways", "trials", "default", "best", "confirmed", "gain")
        yield {name: kernel[name] for name in kept}


def counts(progress: CallProgress) -> dict[str, Any]:
    """Instructions of the default way and of the best one, in QEMU."""
    machine, tried = cpu.machine(cpu.host()), trying(progress.call.spec)

    def count(way: Way) -> int:
        spec = progress.call.spec.with_parameters(way.parameters)
        call = call_kernel(kernel_of(way), spec, tried.arrays, machine.lanes, machine.target)
        tried.check(call.results)
        return call.executions.total

    best = progress.best
    assert best is not None, "the default way at least was measured"
    default, tuned = count(progress.call.ways[0]), count(Way(best.kernel, best.parameters))
    return {"instructions": default, "tuned_instructions": tuned}


def exhaustive() -> dict[str, Any]:
    """How far the default way, and what 64 trials find, are from the best of all ways."""
    reports = [here(ALL, only) for only in HERE]
    reports += [elsewhere(t, ALL, only) for t, texts in ELSEWHERE.items() for only in texts]
    return {"spaces": [space(r, p) for r in reports for p in r.found]}


def space(report: Report, progress: CallProgress) -> dict[str, Any]:
    """One call of which every way was measured."""
    values = sorted(t.value for t in progress.trials if t.value is not None)
    default = progress.default
    assert default is not None, "it was measured first"
    assert default.value is not None, "it is right"
    return {
        "target": report.target,
        "method": report.method,
        "call": progress.call.key,
        "ways": len(progress.call.ways),
        "faults": dict(progress.faults),
        "default_over_best": default.value / values[0],
        "median_over_best": float(np.median(values)) / values[0],
        "worst_over_best": values[-1] / values[0],
        "found_over_best": found(progress),
    }


def found(progress: CallProgress) -> dict[str, float] | None:
    """What 64 trials find, over the best, by 20 seeds; None where there are no more ways."""
    if len(progress.call.ways) <= TRIALS:
        return None
    known = {trial.way: trial.value for trial in progress.trials}
    best = min(value for value in known.values() if value is not None)
    over = [replay(progress.call, known, seed) / best for seed in range(SEEDS)]
    return {"median": float(np.median(over)), "worst": max(over)}


def replay(call: Call, known: dict[tuple[str, str], float | None], seed: int) -> float:
    """The least that a search finds in 64 trials of a space that is known."""
    search, values = Search(call.ways, seed), []
    for _ in range(TRIALS):
        way = search.next()
        assert way is not None, "there are more ways than trials"
        value = known[way_text(way.kernel, way.parameters)]
        search.tell(way, value)
        values += [] if value is None else [value]
    return min(values)


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "gains-f32": lambda: gains("f32"),
    "gains-a8": lambda: gains("a8"),
    "exhaustive": exhaustive,
}


def main(parts: Sequence[str]) -> None:
    slug = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")
    path = RESULTS / f"tuning-{slug}.json"
    for part in parts or PARTS:
        data = json.loads(path.read_text()) if path.exists() else {}
        data |= {"cpu": cpu_name(), part: PARTS[part]()}
        write_whole(path, [(json.dumps(data, indent=1) + "\n").encode()])
        print(f"wrote {part} to {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
