"""Suite cortex-a: its rows say what was counted and modelled, against what, and what is wanted."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from butterflyc.bench import cortex_a
from butterflyc.bench.cases import dense, experts, ternary
from butterflyc.bench.cortex_a import case_rows, peak_instruction, rows_of, suite, wanted_of
from butterflyc.bench.cortex_a_cores import CORES, Memory, peak
from butterflyc.cli.app import run
from butterflyc.compiler.errors import VerificationFailed
from butterflyc.compiler.run.executions import Executions, count_executions
from butterflyc.compiler.run.kernel_call import CountedCall
from butterflyc.compiler.run.modelled import modelled
from butterflyc.kernels.lanes import Lanes
from butterflyc.targets.cpu import Machine

from .assembly import EXIT, program
from .loops import SDOT

ROOT = Path(__file__).resolve().parents[2]


def machine_for(cpu: str, *features: str) -> Machine:
    attributes = [f"+{feature}" for feature in ("neon", *features)]
    target = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": cpu, "mattr": attributes}
    return Machine(target["mtriple"], target, Lanes(), ())


A72 = machine_for("cortex-a72")
A76 = machine_for("cortex-a76", "dotprod")


def by_metric(rows):
    return {row.metric: row for row in rows}


# A call of which all is known: a loop of dot products, then one of what is done with their sums.
TURNS, TURNS_BEHIND, MOVED = 100, 40, 3000
HAND_MADE = "\n".join(
    [
        f"mov w8, #0\n mov w2, #{8 * TURNS}\n ldr x0, =zeros\n ldr x1, =zeros",
        "0:",
        *SDOT.code[:-1],
        "b.lt 0b",
        f"mov x3, #{TURNS_BEHIND}",
        "1: fmul v0.4s, v0.4s, v1.4s\n subs x3, x3, #1\n b.ne 1b",
        f"ret\n .ltorg\n .balign 16\nzeros: .zero {64 * TURNS}",
    ]
)
EXECUTED = 4 + len(SDOT.code) * TURNS + 1 + 3 * TURNS_BEHIND + 1


@pytest.fixture(scope="module")
def call(arm, tmp_path_factory) -> CountedCall:
    """The call above, counted, without what calls it."""
    folder = tmp_path_factory.mktemp("call")
    functions = {"_start": "bl kernel\n" + EXIT["aarch64"], "kernel": HAND_MADE}
    path = program(folder, "aarch64", functions, ["-march=armv8.2-a+dotprod"])
    _, found = count_executions("aarch64", path)
    first, size = found.functions["kernel"]
    inside = {a: n for a, n in found.by_address.items() if first <= a < first + size}
    executions = Executions(inside, found.functions)
    return CountedCall(path.read_bytes(), (), executions, MOVED)


@pytest.mark.parametrize(
    ("core", "instruction", "most"),
    [
        ("a53", "fmla", 4),
        ("a53", "smlal", 8),
        ("a55", "sdot", 16),
        ("a72", "fmla", 4),
        ("a72", "smlal", 8),
        ("a76", "fmla", 8),
        ("a76", "sdot", 32),
    ],
)
def test_peaks_are_those_of_the_models(llvm, core, instruction, most):
    """Nothing but independent products reaches what a core's units do a cycle."""
    assert peak(CORES[core].model, instruction) == most


def test_the_peak_is_of_what_the_machine_has():
    """Floats are multiplied by fmla; codes by sdot where there is one, else by smlal."""
    assert peak_instruction(dense(2, 8, 8), A76) == "fmla"
    assert peak_instruction(ternary(2, 8, 8), A76) == "sdot"
    assert peak_instruction(ternary(2, 8, 8), A72) == "smlal"


def test_wanted_figures():
    """One row and many have figures of their own; those of floats are shares of the peak."""
    assert [wanted_of(CORES["a72"], ternary(n, 8, 8), 8) for n in (1, 2)] == [7.8, 7.5]
    narrow = [ternary(n, 8, 8, bits=7) for n in (1, 2)]
    assert [wanted_of(CORES["a72"], case, 8) for case in narrow] == [10, 13]
    assert wanted_of(CORES["a76"], dense(2, 8, 8), 8) == pytest.approx(7.6)
    assert wanted_of(CORES["a76"], dense(1, 8, 8), 8) is None
    assert wanted_of(CORES["a53"], dense(2, 8, 8), 4) is None
    assert wanted_of(CORES["a55"], ternary(1, 8, 8), 16) is None


def test_rows_of_a_ternary_product(call):
    """The loop is held against its peak and against peers, the call against memory."""
    case = ternary(8, 8 * TURNS, 8)
    rows = by_metric(rows_of("a76", case, A76, call))
    assert case.products == SDOT.products * TURNS
    loop, whole = rows["loop MAC/cycle"], rows["call MAC/cycle"]
    assert (loop.name, loop.shape, loop.suite) == ("ternary_dot on a76", "8x800x8", "cortex-a")
    assert (loop.baseline, loop.target_ratio) == ("peak 32 (sdot)", 28 / 32)
    assert loop.value == pytest.approx(SDOT.rates["neoverse-n1"][0], rel=0.05)
    assert loop.ratio == pytest.approx(loop.value / 32)
    assert rows["loop MAC/cycle at most"].value == pytest.approx(32)
    assert whole.value < rows["call MAC/cycle if blocks overlap"].value < loop.value
    peer = rows["loop MAC/cycle of KleidiAI qsu2cx"]
    assert (peer.value, peer.ratio) == (24.3, pytest.approx(loop.value / 24.3))
    assert "not now" in peer.baseline
    assert rows["loop MAC/cycle of ggml TQ2_0"].value == 12.7
    assert rows["call MAC computed"].ratio == 1
    assert rows["call instructions/MAC"].value == EXECUTED / case.products
    assert rows["cycles by arithmetic"].value * whole.value == pytest.approx(case.products)
    assert rows["cycles by bytes"].value == pytest.approx(MOVED / (12 / 2.4))
    assert rows["cycles by bytes"].baseline == "12 GB/s at 2.4 GHz: folklore, unchecked"


def test_one_row_is_not_held_against_products_of_many(call):
    """A peer's product of many rows is no measure for one row, nor is a rate that nobody told."""
    rows = by_metric(rows_of("a55", ternary(1, 64, 16), A76, call))
    assert "loop MAC/cycle of ggml TQ2_0" in rows
    assert "loop MAC/cycle of KleidiAI qsu2cx" not in rows
    assert "cycles by bytes" not in rows


def test_what_has_no_loop_of_products_reaches_nothing(call):
    """Where no instruction multiplies floats their loop's rate is 0, below what is wanted."""
    rows = by_metric(rows_of("a72", dense(5, 64, 16), A72, call))
    loop = rows["loop MAC/cycle"]
    assert (loop.value, loop.ratio, loop.target_ratio) == (0, 0, 0.95)
    assert "loop MAC/cycle at most" not in rows


def test_fused_experts_show_where_cycles_go(call):
    """The three shares add up to one, and that behind the product is held against its limit."""
    rows = by_metric(rows_of("a76", experts(4, Lanes()), A76, call))
    before, product, behind = (
        rows[f"share of cycles {part} the product"] for part in ("before", "of", "behind")
    )
    assert before.value + product.value + behind.value == pytest.approx(1)
    # Multiplications that wait for each other take three cycles each.
    cycles = rows["cycles by arithmetic"].value
    assert behind.value * cycles == pytest.approx(3 * TURNS_BEHIND, rel=0.2)
    assert behind.ratio == pytest.approx(0.25 / behind.value)
    assert (behind.baseline, behind.target_ratio) == ("at most 0.25", 1)
    others = by_metric(rows_of("a76", ternary(4, 8, 8), A76, call))
    assert "share of cycles of the product" not in others


def test_what_a_kernel_calls_is_of_the_call(arm, tmp_path):
    """A function that the kernel calls is counted and modelled with it, before its product."""
    functions = {
        "main": "mov x29, x30\n bl kernel\n ret x29",
        "_start": "bl main\n" + EXIT["aarch64"],
        "kernel": f"mov x28, x30\n bl helper\n{SDOT.code[2]}\n ret x28",
        "helper": "mov x3, #9\n0: nop\n subs x3, x3, #1\n b.ne 0b\n ret",
    }
    path = program(tmp_path, "aarch64", functions, ["-march=armv8.2-a+dotprod"])
    _, counts = count_executions("aarch64", path)
    call = CountedCall(path.read_bytes(), (), counts, 0)
    found = modelled(call, "neoverse-n1")
    inside = counts.of("kernel") + counts.of("helper")
    assert (counts.of("kernel"), counts.of("helper")) == (4, 2 + 3 * 9)
    assert found.instructions == inside + counts.of("_start")
    assert found.products == 16


def test_a_limit_that_nobody_wants_is_not_shown(call):
    """On a core without a wanted share the row has no baseline."""
    rows = by_metric(rows_of("a55", experts(1, Lanes()), A76, call))
    behind = rows["share of cycles behind the product"]
    assert (behind.baseline, behind.target_ratio) == ("", None)


def test_a_case_is_compiled_counted_and_checked(arm, monkeypatch):
    """Two runs give the same rows, to the last digit; wrong results give none."""
    case = dense(5, 64, 16)
    assert case_rows("a72", case, A72) == case_rows("a72", case, A72)
    monkeypatch.setattr(type(case), "meaning", lambda case: np.ones((5, 16)))
    with pytest.raises(VerificationFailed, match="linear 5x64x16 differs from its meaning"):
        case_rows("a72", case, A72)


def test_memories_say_that_they_are_unchecked():
    """A rate's text has both numbers that it was made of."""
    assert Memory(2, 1.25).bytes_per_cycle == pytest.approx(1.6)
    assert str(Memory(2, 1.25)).startswith("2 GB/s at 1.25 GHz")


@pytest.fixture
def few_cases(monkeypatch):
    """One small case on one core stands for all."""
    monkeypatch.setattr(cortex_a, "cases", lambda lanes: [ternary(2, 64, 16)])
    monkeypatch.setattr(cortex_a, "machines", lambda: {"a76": A76})


def test_the_suite_runs_every_case_on_every_core(arm, few_cases):
    """Rows come core by core and case by case, each announced."""
    said: list[str] = []
    rows = suite(said.append, {"a72": A72, "a76": A76})
    assert said == ["ternary_dot 2x64x16 on a72", "ternary_dot 2x64x16 on a76"]
    assert {row.name for row in rows} == {"ternary_dot on a72", "ternary_dot on a76"}
    assert {row.name for row in suite()} == {"ternary_dot on a76"}


def test_the_command_shows_figures_and_what_they_are_not(arm, few_cases, capsys):
    """`bench --suite cortex-a` shows rates with their verdicts, and that nothing was measured."""
    assert run(["bench", "--suite", "cortex-a"]) == 0
    shown = capsys.readouterr().out
    assert "loop MAC/cycle" in shown
    assert "below" in shown
    assert "No ARM core was there" in shown
    assert "Cortex-A53 is coarse" in shown


def test_the_command_gives_everything_as_json(arm, few_cases, capsys):
    """The JSON has every row, the versions of the tools, and the notes."""
    assert run(["bench", "--suite", "cortex-a", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["tools"]["llvm-mca"].startswith("19.")
    assert data["tools"]["qemu"][0].isdigit()
    assert len(data["notes"]) == 3
    metrics = {row["metric"] for row in data["rows"]}
    assert {"loop MAC/cycle", "cycles by bytes", "call instructions/MAC"} <= metrics


def test_rounds_say_nothing_about_a_model(capsys):
    """What is not timed has no rounds: the option is refused."""
    assert run(["bench", "--suite", "cortex-a", "--rounds", "5"]) == 2
    assert "--rounds is for timing" in capsys.readouterr().err


CORE = """\
name = "cortex-a72"
family = "cpu"
description = "for a test"
triple = "aarch64-linux-gnu"
cpu = "cortex-a72"
features = ["neon"]
lanes = "scalar"
toolchain = ["cc"]
runner = "native"
"""


def test_the_script_shows_the_loop_beside_its_figures(arm, tmp_path, monkeypatch, capsys):
    """For people who tune: the assembly, then the loop's and the call's figures."""
    (tmp_path / "a72.toml").write_text(CORE)
    options = ["--kernel", "linear", "--rows", "65", "--lanes", "scalar", "--by", "linear"]
    options += ["--blocks", "2", "--timeline"]
    arguments = ["model_kernel.py", *options, "--target-file", str(tmp_path / "a72.toml")]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(ROOT / "benchmarks" / "model_kernel.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert shown.startswith("linear 65x256x768 by linear on a72\n")
    assert "  fmla v" in shown
    assert "of 4 by nothing but fmla" in shown
    assert "cycles, as to the product: before" in shown
    assert "Timeline view:" in shown
    assert shown.count("  block ") == 2
    assert "  block " in shown.split("product: ")[1]


@pytest.mark.parametrize("rows", [1, 65])
@pytest.mark.parametrize("core", ["a53", "a72"])
def test_look_ups_reach_what_is_wanted(arm, llvm, core, rows):
    """Products of 7-bit codes are as fast as wanted: on the A72 beyond all that smlal can do."""
    case = ternary(rows, 256, 128, bits=7)
    loop = by_metric(case_rows(core, case, cortex_a.machines()[core]))[cortex_a.LOOP]
    assert loop.target_ratio is not None
    assert loop.target_ratio <= loop.ratio
    assert core == "a53" or loop.ratio > 1
