"""Compiled models in QEMU: from Python and from the command line, with the interpreter's bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import butterflyc as bc
from butterflyc.bench.emulated import rows_of
from butterflyc.cli.app import run
from butterflyc.cli.compile import next_commands
from butterflyc.compiler.errors import BadInput, Incompatible, ToolMissing, UnknownName
from butterflyc.compiler.run.bare_metal import available
from butterflyc.program import Program
from butterflyc.verify import golden, golden_cases, verify

from .packages import IMAGES, codes_and_outputs, compiled

MACHINES = ["rv32imc", "cortex-m4", "esp32"]


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest, needs_tool: Callable[..., str]) -> str:
    """Each machine whose tools are there."""
    for missing in available(str(request.param)):
        needs_tool(missing.tool)
    return str(request.param)


@pytest.fixture
def saved(tmp_path: Path, needs_tool: Callable[..., str]) -> Path:
    """An artefact for a machine, and its tools."""
    for missing in available("rv32imc"):
        needs_tool(missing.tool)
    return compiled("rv32imc").save(tmp_path / "vit.bfly")


@cache
def for_this_machine() -> Program:
    model = torch.nn.Linear(3, 2).eval()
    return bc.compile(model, (torch.zeros(1, 3),), name="here")


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def test_the_bits_of_the_interpreter(machine: str) -> None:
    """Codes give the interpreter's codes, and each step of each run was counted."""
    program = compiled(machine)
    codes, wanted = codes_and_outputs(program)
    on = program.on("qemu")
    assert on.stack_bytes == 0
    np.testing.assert_array_equal(on(codes), wanted.reshape(-1, *program.outputs[0].shape[1:]))
    emulated = on.emulated
    assert emulated is not None
    assert emulated.machine == machine
    assert len(on.instructions) == len(emulated.steps) == len(codes)
    assert on.stack_bytes is not None
    assert 0 < on.stack_bytes < 2000
    for steps, whole in zip(emulated.steps, on.instructions, strict=True):
        assert len(steps) == len(program.manifest["steps"])
        assert min(steps) > 0
        assert abs(sum(steps) - whole) <= 100


def test_floats_tensors_and_names_are_taken(saved: Path) -> None:
    """As on this machine: floats give floats, tensors tensors, a large batch is run in turn."""
    program = bc.load(saved)
    on = program.on("qemu")
    codes, wanted = codes_and_outputs(program)
    result = on(torch.from_numpy(IMAGES[:3]))
    assert isinstance(result, torch.Tensor)
    scale = program.outputs[0].scale
    assert scale is not None
    np.testing.assert_allclose(result.numpy(), wanted.reshape(3, -1) * scale, rtol=1e-6)
    name = program.manifest["inputs"][0]["name"]
    np.testing.assert_array_equal(on(**{name: codes}), wanted.reshape(3, -1))
    with pytest.raises(BadInput, match="was compiled for"):
        on(IMAGES[:1, :, :4])


def test_another_place_is_unknown() -> None:
    """The places are listed, whatever the program is for."""
    with pytest.raises(UnknownName, match="unknown place to run on 'qemo'") as caught:
        compiled("rv32imc").on("qemo")
    assert "nearest: qemu. known: interpreter, native, qemu" in str(caught.value.help)


def test_native_is_a_place_as_well() -> None:
    """A library runs on this machine as ever, where nobody counts."""
    program = for_this_machine()
    on = program.on("native")
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(on(x), program(x))
    assert (on.instructions, on.stack_bytes, on.emulated) == ((), None, None)


def test_what_cannot_run_there() -> None:
    """A library has no bare machine, C for any chip has none either; both say what to do."""
    with pytest.raises(Incompatible, match="here was compiled for host, as a library") as library:
        for_this_machine().on("qemu")
    assert "leave --on out" in str(library.value.help)
    with pytest.raises(Incompatible, match="compiled for c99, whose `runner` is 'none'") as any_c:
        compiled("c99").on("qemu")
    assert "cortex-m4, esp32, rv32imc" in str(any_c.value.help)
    with pytest.raises(Incompatible, match="as C for a machine of its own") as native:
        compiled("c99").on("native")
    assert "--on qemu" in str(native.value.help)


def test_compile_says_what_can_be_done_next() -> None:
    """`compile` offers `verify` where it can run, and only there."""
    path = Path("x.bfly")
    inspect = "butterflyc inspect x.bfly"
    here, machine, anywhere = for_this_machine(), compiled("rv32imc"), compiled("c99")
    assert next_commands(here, path) == f"butterflyc verify x.bfly   {inspect}"
    assert next_commands(machine, path) == f"butterflyc verify x.bfly --on qemu   {inspect}"
    assert next_commands(anywhere, path) == inspect


def test_missing_tools_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the machine's tools nothing is tried, and it is said what to install."""
    path = compiled("cortex-m4").save(tmp_path / "vit.bfly")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing, match="programs for cortex-m4 need what is not installed"):
        compiled("cortex-m4").on("qemu")
    assert run(["verify", str(path), "--on", "qemu"]) == 7
    assert "apt-get install" in capsys.readouterr().err


def test_figures_of_a_verification_are_its_own(saved: Path) -> None:
    """A program that ran before is verified with the instructions of the samples alone."""
    program = bc.load(saved)
    on = program.on("qemu")
    first = verify(program, on=on)
    second = verify(program, on=on)
    assert first.bit_identical
    assert first.routing_agreement is None
    assert first.instructions == second.instructions
    assert len(first.instructions) == len(golden_cases(program))
    assert first.stack_bytes == on.stack_bytes


def test_run_on_qemu(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`run --on qemu` writes what the interpreter says, and tells what it took."""
    inputs, out = tmp_path / "in.npz", tmp_path / "out.npz"
    codes, wanted = codes_and_outputs(bc.load(saved))
    np.savez(inputs, x=codes)
    line = ["run", str(saved), "--inputs", str(inputs), "--out", str(out), "--on", "qemu"]
    assert run(line) == 0
    printed = capsys.readouterr().out
    assert f"wrote {out}: " in printed
    assert "instructions a run, " in printed
    with np.load(out) as results:
        (name,) = results.files
        np.testing.assert_array_equal(results[name], wanted.reshape(3, -1))
    out.unlink()
    assert run([*line, "--json"]) == 0
    document = report(capsys)
    assert document["schema"] == "butterflyc.run/1"
    assert document["outputs"] == {name: [3, 3]}
    assert len(document["instructions"]) == 3  # type: ignore[arg-type]
    assert document["stack_bytes"] > 0  # type: ignore[operator]
    assert out.is_file()


def test_verify_on_qemu(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`verify --on qemu` compares each bit of the golden samples, and tells what a run takes."""
    assert run(["verify", str(saved), "--on", "qemu"]) == 0
    printed = capsys.readouterr().out
    assert "instructions     " in printed
    assert "stack            " in printed
    assert "routing" not in printed
    assert printed.endswith("PASS\n")
    assert run(["verify", str(saved), "--on", "qemu", "--json"]) == 0
    document = report(capsys)
    assert document["pass"] is True
    assert document["bit_identical"] is True
    assert document["routing_agreement"] is None
    assert len(document["instructions"]) == document["samples"]  # type: ignore[arg-type]


def test_a_wrong_bit_is_found(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the machine computes another result than the interpreter, `verify` ends with 5."""

    def off_by_one(program: Program) -> list[object]:
        cases = golden_cases(program)
        wanted = cases[1].wanted.copy()
        wanted.flat[0] += program.outputs[0].scale
        return [cases[0], replace(cases[1], wanted=wanted), *cases[2:]]

    monkeypatch.setattr("butterflyc.verify.golden_cases", off_by_one)
    assert run(["verify", str(saved), "--on", "qemu"]) == 5
    out, err = capsys.readouterr()
    assert out.endswith("FAIL\n")
    assert "sample 1 differs" in err


def test_bench_on_qemu(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`bench OUT --on qemu` tells instructions, the costliest steps, stack, code and memory."""
    assert run(["bench", str(saved), "--on", "qemu"]) == 0
    printed = capsys.readouterr().out
    program = bc.load(saved)
    assert printed.startswith("vit for rv32imc, by riscv64-unknown-elf-gcc")
    for metric in ("instructions", "most instructions", "stack bytes", "arena bytes"):
        assert f"\n{metric} " in printed
    steps = len(program.manifest["steps"])
    assert printed.count("\nstep ") == 10
    assert f"and {steps - 10} steps that take less" in printed
    assert run(["bench", str(saved), "--on", "qemu", "--json"]) == 0
    document = report(capsys)
    assert document["target"] == "rv32imc"
    rows = {row["metric"]: row for row in document["rows"]}  # type: ignore[attr-defined]
    assert sum(metric.startswith("step ") for metric in rows) == steps
    assert rows["arena bytes"]["value"] == program.memory["arena"]


def test_what_a_bench_counts(saved: Path) -> None:
    """Steps are the costliest first and make up the mean, which lies between its ends."""
    program = bc.load(saved)
    rows, compiler = rows_of(program, lambda _: None)
    assert "gcc" in compiler
    by_name = {row.metric: row for row in rows}
    mean = by_name["instructions"].value
    assert by_name["fewest instructions"].value <= mean <= by_name["most instructions"].value
    steps = [row for row in rows if row.metric.startswith("step ")]
    assert [row.value for row in steps] == sorted((row.value for row in steps), reverse=True)
    assert abs(sum(row.value for row in steps) - mean) <= 100
    assert abs(sum(row.ratio for row in steps) - 1) < 0.01
    assert by_name["weights bytes"].value > 1000
    assert len(golden(program)[0]) > 0


@pytest.mark.parametrize(
    ("line", "status", "told"),
    [
        ("run {} --inputs in.npz --out out.npz --on qemo", 2, "unknown place to run on 'qemo'"),
        ("verify {} --on qemo", 2, "unknown place to run on 'qemo'"),
        ("bench {} --on qemo", 2, "unknown place to run on 'qemo'"),
        ("bench {}", 2, "an artefact and --on qemu go together"),
        ("bench --on qemu", 2, "an artefact and --on qemu go together"),
        ("bench {} --on qemu --suite kernels", 2, "--suite is for timing on this machine"),
        ("bench {} --on qemu --rounds 15", 2, "--rounds is for timing on this machine"),
        ("bench {} --on native", 2, "an artefact and --on qemu go together"),
        ("run {} --inputs in.npz --out out.npz --on qemu", 6, "whose `runner` is 'none'"),
        ("verify {} --on qemu", 6, "whose `runner` is 'none'"),
        ("bench {} --on qemu", 6, "whose `runner` is 'none'"),
        ("verify {}", 6, "as C for a machine of its own"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_refusals(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    status: int,
    told: str,
    as_json: bool,
) -> None:
    """What is asked wrongly ends with its status and its reason, and writes nothing."""
    monkeypatch.chdir(tmp_path)
    compiled("c99").save(tmp_path / "vit.bfly")
    np.savez("in.npz", x=IMAGES[:1])
    assert run([*line.format("vit.bfly").split(), *(["--json"] if as_json else [])]) == status
    out, err = capsys.readouterr()
    assert told in err
    assert not Path("out.npz").exists()
    if as_json:
        assert json.loads(out)["error"]["exit_status"] == status
