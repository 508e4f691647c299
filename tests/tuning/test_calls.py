"""What there is to tune in a graph: which nodes ask for the same, and in which ways."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

import butterflyc as bc
from butterflyc.build import before_kernels
from butterflyc.kernels import all_kernels
from butterflyc.passes.select_kernels import spec_of
from butterflyc.program import load
from butterflyc.targets.registry import core_from, family_of
from butterflyc.tuning.calls import HOPELESS, Call, asking, calls_of, key_of, select_of
from butterflyc.tuning.measure import kernel_of

from .small import X, calls, lowered, net, spec

TARGETS = pytest.mark.parametrize(
    ("target", "mode"), [("host", "f32"), ("host", "int8"), ("rv32imc", "int8")]
)


def dense(found: tuple[Call, ...]) -> Call:
    """The call of the most nodes that is a dense layer."""
    layers = [call for call in found if call.spec.op.endswith("linear")]
    return max(layers, key=lambda call: len(call.nodes))


@TARGETS
def test_nodes_that_ask_the_same_are_one_call(target: str, mode: str) -> None:
    """Two dense layers of one size are one, also if they differ in numbers that calls give."""
    found = calls(target, mode)
    assert len({call.key for call in found}) == len(found)
    assert len(dense(found).nodes) >= 2
    nodes = [name for call in found for name in call.nodes]
    assert len(set(nodes)) == len(nodes)
    graph = lowered(target, mode).unselected
    assert set(nodes) <= {node.name for node in graph.nodes}


def test_calls_are_counted_by_inference() -> None:
    """Where rows are computed two at a time, each node calls once for each two."""
    whole, tiled = dense(calls("host", "int8")), dense(calls("rv32imc", "int8"))
    assert whole.count == len(whole.nodes)
    assert tiled.spec.operands[0].shape[0] == 2
    assert tiled.count == 2 * len(tiled.nodes)


def test_keys_are_stable_text() -> None:
    """They are the op, its types, and its attributes in the order of their names."""
    assert "linear(f32[4x32], f32[32x32], f32[32]) -> f32[4x32] {activation=none}" in [
        call.key for call in calls()
    ]
    asked = spec("ternary_dot", "i8 2 8, ternary 4 8", "i32 2 4", bits=8)
    assert key_of(asked) == "ternary_dot(i8[2x8], ternary[4x8]) -> i32[2x4] {bits=8}"
    assert key_of(spec("exp", "f32 ", "f32 ")) == "exp(f32[scalar]) -> f32[scalar]"


def of_numbers(**changes: int) -> str:
    attributes = {"planes": 4, "drop": 3, "shift": 17, **changes}
    operands = "i8 2 64, i8 8 64, i32 8, i16 8"
    return key_of(spec("quantized_linear", operands, "i8 2 8", **attributes))


def test_keys_leave_out_what_no_code_holds() -> None:
    """A shift is given with each call, whatever the kernel; what one kernel has in it counts."""
    assert of_numbers(shift=9) == of_numbers()
    assert of_numbers(drop=1) != of_numbers(), "tables have it in their code"
    assert of_numbers(planes=2) != of_numbers(), "so have they digits"


def noted(target: str, mode: str) -> dict[str, tuple[str, Mapping[str, int]]]:
    """The kernels and parameters in the last stage of a compilation that knows no records."""
    nodes = [node for node in lowered(target, mode).last.nodes if "kernel" in node.notes]
    return {
        node.name: (str(node.notes["kernel"]), dict(spec_of(node).parameters)) for node in nodes
    }


@TARGETS
def test_the_first_way_is_what_is_taken_untuned(target: str, mode: str) -> None:
    """For every node of the call."""
    taken = noted(target, mode)
    for call in calls(target, mode):
        first = call.ways[0].kernel, dict(call.ways[0].parameters)
        assert [taken[name] for name in call.nodes] == [first] * len(call.nodes)


@TARGETS
def test_no_two_ways_are_one(target: str, mode: str) -> None:
    """Each kernel does something else by each; and all of them serve the call."""
    lanes = select_of(lowered(target, mode).passes).lanes
    for call in calls(target, mode):
        assert len(call.ways) > 1
        plans = set()
        for way in call.ways:
            kernel, asked = kernel_of(way), call.spec.with_parameters(way.parameters)
            assert kernel.supports(asked, lanes)
            plans.add((kernel.name, kernel.plan(asked, lanes)))
        assert len(plans) == len(call.ways), call.key


def test_hopeless_ways_are_counted() -> None:
    """What a model of costs has no hope for is left out, and is all that is missing."""
    built = lowered("host", "int8")
    select = select_of(built.passes)
    groups = asking(built.unselected, select)
    found = calls("host", "int8")
    assert sum(call.left_out for call in found) > 0
    for call in found:
        costs = [way.predicted or 0.0 for way in call.ways]
        assert all(cost <= HOPELESS * min(costs) for cost in costs[1:])
        able = select.able(groups[call.key][0])
        everything = sum(len(kernel.ways(call.spec, select.lanes)) for kernel in able)
        assert len(call.ways) + call.left_out <= everything + 1


def test_a_default_is_kept_that_seems_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken untuned is measured, whatever the model says of it."""
    monkeypatch.setattr("butterflyc.tuning.calls.HOPELESS", 0.0)
    built = lowered("host", "int8")
    for call, usual in zip(
        calls_of(built.unselected, built.passes), calls("host", "int8"), strict=True
    ):
        assert call.ways[0] == usual.ways[0]
        assert call.left_out >= usual.left_out


@TARGETS
def test_calls_of_what_was_saved(target: str, mode: str, tmp_path: Path) -> None:
    """An artefact, which holds no constants of that stage, has the calls that the model has."""
    program = bc.compile(net(), (X,), target=target, mode=mode, records=False)
    saved = load(program.save(tmp_path / "m.bfly"))
    core = core_from(saved.manifest["core"])
    graph = saved.stages[before_kernels(saved.manifest["stages"])]
    if target == "rv32imc":
        digests = {str(node["digest"]) for node in graph.nodes if node.op == "constant"}
        assert digests - graph.constants.keys(), "weights are packed, and kept so alone"
    found = calls_of(graph, family_of(core).passes(core, mode))
    assert [attrs.asdict(call) for call in found] == [
        attrs.asdict(call) for call in calls(target, mode)
    ]


def test_ops_of_one_way_are_no_calls() -> None:
    """What is computed in one way alone is no choice."""
    names = {name for call in calls() for name in call.nodes}
    alone = [n for n in lowered().last.nodes if "kernel" in n.notes and n.name not in names]
    assert alone
    kernels = {kernel.name: kernel for kernel in all_kernels()}
    lanes = select_of(lowered().passes).lanes
    for node in alone:
        kernel = kernels[str(node.notes["kernel"])]
        assert len(kernel.ways(spec_of(node).with_parameters({}), lanes)) == 1
