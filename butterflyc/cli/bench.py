"""``butterflyc bench``: how fast, against what, how sure."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ..compiler.errors import UsageError
from ._output import print_columns, print_json
from ._progress import progress
from ._threads import one_thread

if TYPE_CHECKING:
    from ..bench.timing import Row

SUITES = ("cortex-a", "kernels", "vit")
SHOWN_STEPS = 10


@click.command()
@click.argument("artefact", type=click.Path(path_type=Path), required=False)
@click.option("--on", "place", default="native", help="With ARTEFACT: qemu.")
@click.option("--suite", type=click.Choice(SUITES), default="vit", show_default=True)
@click.option("--rounds", type=click.IntRange(3, 1000), default=15, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(artefact: Path | None, place: str, suite: str, rounds: int, as_json: bool) -> None:
    """Time compiled code against its rivals, in turns, in one process, on one core.

    `--suite cortex-a` has kernels on ARM cores, counted in QEMU and modelled by LLVM, not timed.
    `bench ARTEFACT --on qemu` counts the instructions of a model for a microcontroller instead.
    """
    one_thread()
    from ..placed import check_place

    check_place(place)
    if (artefact is not None) != (place == "qemu"):
        raise UsageError(
            "an artefact and --on qemu go together",
            help="`bench OUT --on qemu` for one that was compiled for a microcontroller; "
            "`bench --suite vit` needs no artefact",
        )
    if artefact is not None:
        _refuse_timing_options("suite", "rounds")
        _count(artefact, as_json)
        return
    if suite == "cortex-a":
        _refuse_timing_options("rounds")
        _model(as_json)
        return
    from importlib import import_module

    from ..build import tool_versions
    from ..compiler.run.native import cpu_name

    with progress() as report:
        rows: list[Row] = import_module(f"...bench.{suite}", __name__).suite(report, rounds)
    machine = {"machine": platform.machine(), "cpu": cpu_name(), "tools": tool_versions()}
    if as_json:
        print_json("bench", {**machine, "rows": [row.as_dict() for row in rows]})
        return
    header = ("name", "shape", "against", "ratio", "spread", "wanted", "")
    print_columns([header, *map(_cells, rows)])


def _refuse_timing_options(*names: str) -> None:
    """Raises UsageError if one of these options was given, which say nothing about counting."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise UsageError(
                f"--{name} is for timing on this machine, and instructions in QEMU are counted",
                help=f"leave --{name} out; one count is exact",
            )


def _count(artefact: Path, as_json: bool) -> None:
    from ..bench.emulated import rows_of
    from ..program import load

    program = load(artefact)
    with progress() as report:
        rows, compiler = rows_of(program, report)
    if as_json:
        data = {"target": program.target, "compiler": compiler, "tools": program.manifest["tools"]}
        print_json("bench", {**data, "rows": [row.as_dict() for row in rows]})
        return
    click.echo(f"{program.name} for {program.target}, by {compiler}")
    steps = [row for row in rows if row.metric.startswith("step ")]
    shown = [row for row in rows if row not in steps[SHOWN_STEPS:]]
    cells = [(r.metric, f"{r.value:,.0f}", f"{r.ratio:.1%}" if r.baseline else "") for r in shown]
    print_columns([("metric", "value", "of mean"), *cells])
    if hidden := steps[SHOWN_STEPS:]:
        click.echo(f"and {len(hidden)} steps that take less: --json has them all")


def _model(as_json: bool) -> None:
    from ..bench.cortex_a import NOTES, SHOWN, suite
    from ..build import tool_versions
    from ..compiler.run.executions import emulator_version
    from ..compiler.run.llvm import llvm_version

    with progress() as report:
        rows = suite(report)
        tools = {**tool_versions(), "llvm-mca": llvm_version(), "qemu": emulator_version()}
    if as_json:
        notes = list(NOTES)
        print_json("bench", {"tools": tools, "notes": notes, "rows": [r.as_dict() for r in rows]})
        return
    header = ("name", "shape", "metric", "value", "against", "ratio", "wanted", "")
    shown = [row for row in rows if row.metric in SHOWN]
    print_columns([header, *map(_modelled_cells, shown)])
    for note in NOTES:
        click.echo(note)
    click.echo(f"and {len(rows) - len(shown)} rows more: --json has them all")


def _modelled_cells(row: Row) -> tuple[str, ...]:
    _, _, against, ratio, _, wanted, verdict = _cells(row)
    ratio = ratio if against else ""
    return row.name, row.shape, row.metric, f"{row.value:.3g}", against, ratio, wanted, verdict


def _cells(row: Row) -> tuple[str, ...]:
    wanted = f"{row.target_ratio:g}" if row.target_ratio else ""
    verdict = "" if not row.target_ratio else "ok" if row.ratio >= row.target_ratio else "below"
    numbers = f"{row.ratio:.2f}", f"{row.spread:.2f}"
    return row.name, row.shape, row.baseline, *numbers, wanted, verdict
