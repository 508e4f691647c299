"""What tables made by counting predict of whole models, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch

import butterflyc as bc
from butterflyc.cli.app import run
from butterflyc.compiler.ir import Graph
from butterflyc.compiler.ir.schedule import steps_of
from butterflyc.compiler.run.bare_metal import available
from butterflyc.compiler.run.driver_count import driver_instructions
from butterflyc.compiler.run.kernel_count import kernel_instructions
from butterflyc.instructions import (
    SHOWN,
    instructions_of,
    instructions_rows,
    instructions_text,
)
from butterflyc.kernels import all_kernels
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.checkpoint import digits_calibration, digits_test
from butterflyc.passes.select_kernels import kernel_of, spec_of
from butterflyc.targets import mcu
from butterflyc.targets.instructions import predicted
from butterflyc.targets.prices import Prices, prices_of
from butterflyc.targets.registry import load_core

from ..digits import digits_model
from .firmware import prediction_error, run_on
from .packages import compiled
from .test_mcu import compiled as compiled_vit
from .test_mcu import config, inputs_of

MACHINES = ("rv32imc", "cortex-m4", "esp32")
# How far a prediction of one call may be off. What clang makes of a loop depends on its length in
# ways that no price tells.
OF_A_CALL = {"rv32imc": 0.15, "cortex-m4": 0.15, "esp32": 0.2}
SMALL = 350  # instructions: errors of shorter calls are compared with it
# Widths and depths of no power of two, two rotations' worth of layers, and a matrix that is shared.
ODD = config(ButterflyConfig(d_model=40, d_ff=72, experts=6, top_k=2, layers_in=3, angle_std=1.0))


def need(machine: str, needs_tool: Callable[..., str]) -> None:
    for missing in available(machine):
        needs_tool(missing.tool)


def digits_graph(target: str) -> Graph:
    images, calibration = digits_test().floats(), digits_calibration().floats()
    example = (torch.from_numpy(images[:1]),)
    program = bc.compile(
        digits_model(False).eval(), example, target=target, name="digits", calibration=calibration
    )
    return program.stages["plan_memory"]


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_the_digits_model(
    machine: str,
    tmp_path: Path,
    needs_tool: Callable[..., str],
    record_property: Callable[[str, object], None],
) -> None:
    """No step is without a prediction, and each kernel's call is about what it is counted to be."""
    need(machine, needs_tool)
    graph, core, lanes = (
        digits_graph(machine),
        load_core(machine),
        mcu.machine(load_core(machine)).lanes,
    )
    assert predicted(graph, core, lanes).instructions
    seen, errors = set(), {}
    for step in steps_of(graph):
        for node, rows in [(n, rows) for n in step.nodes for _, _, rows in step.tiles]:
            if "kernel" not in node.notes:
                continue
            kernel, spec = kernel_of(node, all_kernels()), spec_of(node, rows)
            if kernel.opened(spec) in seen:
                continue
            seen.add(kernel.opened(spec))
            count = kernel_instructions(machine, kernel, spec, lanes, tmp_path / spec.digest)
            found = prices_of(machine).instructions(kernel, spec, lanes)
            assert found
            errors[node.name] = abs(found - count) / max(count, SMALL)
    worst = max(errors, key=errors.__getitem__)
    record_property("worst", (worst, errors[worst]))
    assert errors[worst] <= OF_A_CALL[machine], (worst, errors[worst])
    assert len(seen) > 20


@pytest.mark.parametrize("machine", MACHINES)
def test_a_small_model(machine: str, tmp_path: Path, needs_tool: Callable[..., str]) -> None:
    """A model of odd sizes, with a step that only copies, takes within 10 % of the prediction."""
    need(machine, needs_tool)
    program = compiled_vit(ODD, 0, machine)
    ran = run_on(machine, program, inputs_of(program, 1), tmp_path)
    assert abs(prediction_error(program, sum(ran.instructions) / len(ran.instructions))) <= 0.1


@pytest.mark.parametrize("machine", MACHINES)
def test_what_the_driver_takes(
    machine: str, tmp_path: Path, needs_tool: Callable[..., str]
) -> None:
    """A call and a copy are about what their prices say."""
    need(machine, needs_tool)
    prices = prices_of(machine)
    (call,), (copy,) = driver_instructions(machine, [7], [600], tmp_path)
    assert abs(prices.calling(7) / call - 1) <= 0.15
    assert abs(prices.copying(600) / copy - 1) <= 0.15


def test_steps_of_a_prediction() -> None:
    """There is one for each step of the driver, and their sum is what is told."""
    program = compiled("rv32imc")
    assert program.placement
    data = program.placement["instructions"]
    assert [step["name"] for step in data["steps"]] == program.manifest["steps"]
    parts = [step["instructions"] for step in data["steps"]]
    assert abs(sum(parts) - data["total"]) <= len(parts)
    assert min(parts) > 0
    assert (data["clock_hz"], data["milliseconds"]) == (None, None)
    assert "ms" not in instructions_text(data)


def test_time_on_a_board() -> None:
    """A board has a clock: the time is the instructions by it."""
    program = compiled("esp32c3")
    assert program.placement
    data = program.placement["instructions"]
    assert data["milliseconds"] == pytest.approx(data["total"] / 160_000)
    text = instructions_text(data)
    assert f"these are {data['milliseconds']:.1f} ms: a lower bound" in text
    assert "160 MHz" in text
    report = program.artefact.section("report/report.md").decode()
    assert f"## Instructions\n\n{text}.\n\n| step | instructions | share | source |" in report


def test_the_costliest_steps_are_shown_first() -> None:
    """With their shares, and all others in one row."""
    program = compiled("rv32imc")
    assert program.placement
    data = program.placement["instructions"]
    head, *rows, rest = instructions_rows(data)
    assert head == ("step", "instructions", "share", "source")
    shown = [int(row[1].replace(",", "")) for row in rows]
    assert len(shown) == SHOWN
    assert shown == sorted(shown, reverse=True)
    assert rest[0] == f"{len(data['steps']) - SHOWN} others"
    few = instructions_rows({**data, "steps": data["steps"][:2]})
    assert len(few) == 3


def test_a_target_without_counts() -> None:
    """The report says why there is no prediction."""
    program = compiled("c99")
    assert program.placement
    data = program.placement["instructions"]
    assert data["total"] is None
    why = "Instructions are not predicted: none were counted for this target"
    assert instructions_text(data) == why
    report = program.artefact.section("report/report.md").decode()
    assert f"## Instructions\n\n{why}.\n\n## Experts" in report


def test_a_step_without_a_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and there is neither a total nor a time."""
    known = prices_of("rv32imc")
    less = {name: prices for name, prices in known.kernels.items() if "norm" not in name}
    monkeypatch.setattr(
        "butterflyc.targets.instructions.prices_of",
        lambda machine: Prices(known.compiler, less, known.driver),
    )
    found = mcu.predict(compiled("esp32c3").stages["plan_memory"], load_core("esp32c3"))
    assert (found.instructions, found.milliseconds) == (None, None)
    unknown = [step.name for step in found.steps if step.instructions is None]
    assert "norm.layer_norm" in unknown
    text = instructions_text(instructions_of(found))
    assert text == f"Instructions are not predicted: no price is known for {', '.join(unknown)}"


def test_no_clock_is_no_time() -> None:
    """Milliseconds follow the clock, and are none where there is no total."""
    core = load_core("esp32c3")
    lanes = mcu.machine(core).lanes
    graph = compiled("esp32c3").stages["plan_memory"]
    whole = predicted(graph, core, lanes)
    half = predicted(graph, attrs.evolve(core, clock_hz=80_000_000), lanes)
    assert whole.milliseconds
    assert half.milliseconds == pytest.approx(2 * whole.milliseconds)
    assert predicted(graph, attrs.evolve(core, runner="none"), lanes).milliseconds is None


def test_inspect_instructions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The view tells the total and the steps; a library has none, which is said."""
    path = compiled("esp32c3").save(tmp_path / "vit.bfly")
    assert run(["inspect", str(path), "instructions"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("About ")
    assert "instructions an inference" in printed
    assert "\nstep " in printed
    assert run(["inspect", str(path), "instructions", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "butterflyc.inspect.instructions/1"
    assert document["total"] > 0
    path = compiled("c99").save(tmp_path / "any.bfly")
    assert run(["inspect", str(path), "instructions"]) == 0
    assert "none were counted" in capsys.readouterr().out
    here = bc.compile(torch.nn.Linear(3, 2).eval(), (torch.zeros(1, 3),), name="here")
    path = here.save(tmp_path / "here.bfly")
    assert run(["inspect", str(path), "instructions"]) == 2
    assert "its target is host" in capsys.readouterr().err
