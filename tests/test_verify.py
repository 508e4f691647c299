"""Verification: what it measures, what it names, and that it fails when it should."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import butterflyc as bc
from butterflyc.check import check, split_batches
from butterflyc.compiler.errors import BadInput
from butterflyc.compiler.ir import Graph, constant, rebuild
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.vit import ViT, ViTConfig
from butterflyc.program import Program
from butterflyc.verify import observe, relative_errors, verify, verify_stages


@cache
def tied_model() -> ViT:
    """A small ViT whose gate gives experts 1 and 2 the same score for every token."""
    torch.manual_seed(0)
    mlp = ButterflyConfig(d_model=32, d_ff=64, experts=3, angle_std=0.5)
    model = ViT(ViTConfig(8, 1, 4, 10, 32, 4, 1, mlp=mlp)).eval()
    with torch.no_grad():
        gate = model.blocks[0].mlp.gate.weight
        gate[2] = gate[1]
    return model


@cache
def tied_program() -> Program:
    return bc.compile(tied_model(), (torch.rand(1, 1, 8, 8),), name="tied")


SAMPLES = np.random.default_rng(0).random((3, 1, 8, 8)).astype(np.float32)


def test_near_ties_are_listed_and_compared_with_routing_forced() -> None:
    """Samples whose choice hangs on rounding are left out of the error and forced instead."""
    outcome = check(tied_program(), tied_model(), [SAMPLES])
    assert len(outcome.near_ties) > 0
    assert outcome.forced_max_rel is not None
    assert outcome.forced_max_rel <= 1e-5
    assert outcome.passed


def test_the_routing_that_the_library_took_is_read_back() -> None:
    """Program.routing gives the experts that the interpreter chooses."""
    program = tied_program()
    seen = observe(program.stages["plan_memory"], SAMPLES[:1])
    for got, wanted in zip(program.routing(SAMPLES[:1]), seen.experts, strict=True):
        np.testing.assert_array_equal(got, wanted)


def spoiled(graph: Graph, name: str, by: float) -> Graph:
    """``graph`` with one constant scaled."""
    store = dict(graph.constants)

    def change(node):  # type: ignore[no-untyped-def]
        if node.name != name:
            return node
        changed = constant(store, (graph.value(node) * by).astype(node.type.storage), name)
        return replace(changed, types=node.types)

    return rebuild(graph, change, store)


def test_bisection_names_the_first_wrong_pass() -> None:
    """Where a pass changes the meaning, it is named, and the passes after it are not."""
    stages = dict(tied_program().stages)
    wrong = False
    for stage, graph in stages.items():
        wrong = wrong or stage == "fold_permutations"
        if wrong:
            stages[stage] = spoiled(graph, "head.bias", 1.5)
    reports = verify_stages(stages, [(SAMPLES[:1],)], {})
    assert [report.stage for report in reports if not report.passed] == ["fold_permutations"]


def test_a_loaded_artefact_is_what_is_forced(tmp_path: Path) -> None:
    """Near-ties of a loaded artefact are compared through its own weights."""
    loaded = bc.load(tied_program().save(tmp_path / "tied.bfly"))
    outcome = check(loaded, tied_model(), [SAMPLES[:1]])
    assert outcome.near_ties == (0,)
    assert outcome.forced_max_rel is not None
    assert outcome.forced_max_rel <= 1e-5


def test_bisect_reports_every_pass_and_the_first_failing_one() -> None:
    """check(bisect=True) has a line for each pass; a broken one fails the whole."""
    program = tied_program()
    fine = check(program, tied_model(), [SAMPLES], bisect=True)
    assert fine.first_failing_stage is None
    assert [stage.stage for stage in fine.stages] == list(program.stages)[1:]
    stages = dict(program.stages)
    stages["plan_memory"] = spoiled(stages["plan_memory"], "head.bias", 2.0)
    broken = check(replace(program, fresh_stages=stages), tied_model(), [SAMPLES], bisect=True)
    assert broken.first_failing_stage == "plan_memory"
    assert not broken.passed


def test_a_wrong_reference_fails_with_its_size() -> None:
    """Against another model the error is far beyond the limit, and the worst sample is told."""
    torch.manual_seed(9)
    other = ViT(tied_model().config).eval()
    outcome = check(tied_program(), other, [SAMPLES])
    assert not outcome.passed
    assert outcome.max_rel > 100 * outcome.limit
    assert 0 <= outcome.worst_sample < 3


def test_without_a_model_the_golden_pairs_are_used() -> None:
    """An artefact verifies alone; json has the promised keys."""
    outcome = verify(tied_program())
    assert outcome.against == "golden pairs"
    assert {"pass", "top1_agreement", "routing_agreement", "max_abs", "max_rel", "stages"} <= set(
        outcome.as_dict()
    )
    with pytest.raises(BadInput, match="no sample"):
        verify(tied_program(), [])


@pytest.mark.parametrize(
    "arrays",
    [[], [SAMPLES, SAMPLES], [SAMPLES.astype(np.float64)], [SAMPLES[:, :, :4]]],
    ids=["none", "two", "dtype", "shape"],
)
def test_samples_that_do_not_fit_are_refused(arrays: list[np.ndarray]) -> None:
    """Samples of another count, dtype or shape raise BadInput."""
    with pytest.raises(BadInput):
        split_batches(tied_program(), arrays)


def test_relative_errors_are_by_sample() -> None:
    """The error of a sample is its largest difference over its largest reference."""
    wanted = np.array([[1.0, -4.0], [0.0, 0.0]])
    got = np.array([[1.0, -3.0], [0.5, 0.0]])
    np.testing.assert_allclose(relative_errors(got, wanted), [0.25, 0.5])
