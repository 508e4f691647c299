"""The report on what mode int8 costs: measured by value, worst first, and shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from butterflyc.cli.app import run
from butterflyc.compiler import artefact as bfly
from butterflyc.compiler.artefact import Artefact
from butterflyc.compiler.codes import interpret_real
from butterflyc.compiler.ir import Graph, Type, input_node, make
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.passes.quantize import Quantize
from butterflyc.quantization import quantization_report

from .passes.graphs import Builder, Mixture, Rotation, build
from .passes.test_quantize import block, in_front, samples
from .test_integer_program import program


def test_each_value_is_measured_worst_first() -> None:
    """The first output's SNR is that of its floats; what has less of it comes first."""
    graph = block(np.random.default_rng(1))
    some = samples(graph, 12)
    after = Quantize(some)(graph)
    report = quantization_report(graph, after, some)
    found = {row["name"]: row for row in report["nodes"]}
    assert {"x", "stream", "norm1", "attention", "gelu", "pooled"} <= found.keys()
    assert not {"q.split", "q.heads", "position"} & found.keys()
    ratios = [row["snr_db"] for row in report["nodes"]]
    assert ratios == sorted(ratios)
    signal = noise = 0.0
    for sample in some:
        (wanted,), (real,) = interpret(graph, *sample), interpret_real(after, *sample)
        signal += float(np.square(wanted).sum())
        noise += float(np.square(wanted - real).sum())
    assert report["output"] == after.outputs[0].name
    assert found[report["output"]]["snr_db"] == pytest.approx(
        10 * np.log10(signal / noise), abs=0.1
    )
    assert (report["samples"], report["routing_agreement"]) == (12, None)
    assert 0 <= report["top1_agreement"] <= 1


def test_digits_of_weights_are_told() -> None:
    """Each dense matrix with its digits, and what they keep of it."""
    graph = block(np.random.default_rng(1))
    some = samples(graph, 4)
    report = quantization_report(graph, Quantize(some, 24.0)(graph), some)
    found = {each["name"]: each for each in report["weights"]}
    assert {"q", "up", "down", "head"} <= found.keys()
    assert found["up"]["shape"] == [16, 8]
    assert all(each["digits"] <= 5 for each in found.values())
    assert all(each["snr_db"] is None or each["snr_db"] >= 24 for each in found.values())


@pytest.mark.parametrize(("count", "taken"), [(1, 1), (16, 16), (17, 9), (100, 15)])
def test_at_most_16_samples_are_measured(count: int, taken: int) -> None:
    """They are spread over all of them."""
    graph = block(np.random.default_rng(1))
    some = samples(graph, count)
    after = Quantize(some[:2])(graph)
    assert quantization_report(graph, after, some)["samples"] == taken


def test_routing_is_compared_layer_by_layer() -> None:
    """Of a mixture the report says how often integers choose the experts that floats do."""
    graph = in_front(build(Mixture(tokens=4, rotation_in=Rotation(8, 1)), np.random.default_rng(3)))
    some = samples(graph, 16)
    report = quantization_report(graph, Quantize(some)(graph), some)
    (layer,) = report["routing"]
    assert layer["name"] == "routing"
    assert layer["agreement"] == report["routing_agreement"] >= 0.8


def test_exact_silent_and_clipped_values() -> None:
    """Codes give back whole numbers without noise; zeros have none; what is beyond is counted."""
    b = Builder(None)
    x = input_node("x", Type("f32", (1, 8)))
    zero = make("mul", x, b.constant("zero", np.zeros(8)), name="zero.product")
    graph = Graph("g", (x,), (make("add", x, zero, name="y"),), b.store)
    whole = (np.array([[127, -127, 3, 4, 0, 0, 0, 0]], np.float32),)
    after = Quantize([whole])(graph)
    rows = {row["name"]: row for row in quantization_report(graph, after, [whole])["nodes"]}
    assert rows["zero.product"]["snr_db"] is None
    assert (rows["x"]["snr_db"], rows["x"]["clipped"]) == (None, 0)
    beyond = (whole[0] * 2,)
    rows = {row["name"]: row for row in quantization_report(graph, after, [beyond])["nodes"]}
    assert rows["x"]["clipped"] == 0.25
    assert rows["x"]["snr_db"] == pytest.approx(10 * np.log10(4), abs=0.05)


def test_a_program_carries_the_report_and_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`inspect OUT quantization` is a table, and one JSON document with --json."""
    path = program().save(tmp_path / "m.bfly")
    data = program().report["quantization"]
    assert run(["inspect", str(path), "quantization"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "integers against floats, on 12 calibration samples"
    assert any(line.startswith(f"the first output, {data['output']}: ") for line in lines)
    assert any("chooses the same experts for" in line for line in lines)
    worst = data["nodes"][0]
    head = next(i for i, line in enumerate(lines) if line.startswith("SNR "))
    assert lines[head + 1].startswith(f"{worst['snr_db']:.1f} dB")
    assert worst["name"] in lines[head + 1]
    assert lines[-1] == f"and {len(data['nodes']) - 20} values with less noise: --json has them all"
    assert run(["inspect", str(path), "quantization", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.pop("schema") == "butterflyc.inspect.quantization/1"
    assert document == data
    assert run(["inspect", str(path), "recognition", "--json"]) == 0
    assert "quantization" not in json.loads(capsys.readouterr().out)


def test_a_program_in_floats_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That is a wrong call, which says how to get one."""
    whole = program().artefact
    manifest = {**whole.manifest, "mode": "f32"}
    report = {k: v for k, v in program().report.items() if k != "quantization"}
    sections = {**whole.sections, "report.json": json.dumps(report).encode()}
    bfly.write(tmp_path / "m.bfly", Artefact(manifest, sections))
    assert run(["inspect", str(tmp_path / "m.bfly"), "quantization"]) == 2
    said = capsys.readouterr().err
    assert "its mode is f32" in said
    assert "--mode int8" in said
