"""``butterflyc tune``: measure ways to compute the kernels of a model, for `compile` to take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..compiler.errors import ToolFailed, UsageError
from ._output import print_json
from ._progress import progress
from ._threads import one_thread
from ._tuning import kernel_line, show_checked, show_report

if TYPE_CHECKING:
    from ..tuning.report import Report
    from ..tuning.trial import Trial
    from ..tuning.tuner import CallProgress

INTERRUPTED = 130


@click.command()
@click.argument("model", required=False)
@click.option("-t", "--target", help="Of a model: see `targets`. By default this machine.")
@click.option("-m", "--mode", help="Of a model: as `compile` takes it.")
@click.option("--calibrate", type=click.Path(path_type=Path), help="Samples: an .npz file.")
@click.option("--weight-snr", type=float, metavar="DB", help="Of dense weights in int8.")
@click.option("--act-bits", type=int, metavar="N", help="Of activations in a8: 8 or 7.")
@click.option("--angles", help="Of rotations: i8, i16 or f16; by default as they are.")
@click.option("--target-file", type=click.Path(path_type=Path), help="A core of your own: TOML.")
@click.option("--budget", default="5m", show_default=True, help="90s, 5m, 1h; or trials a kernel.")
@click.option("--only", default="", metavar="TEXT", help="Kernels whose call holds it: linear.")
@click.option("--on", default="native", show_default=True, help="Of ARM: ssh:user@host, a board.")
@click.option("--retry", is_flag=True, help="Try again what crashed or took too long.")
@click.option("--check", is_flag=True, help="Of a GPU that is not here: compile, measure nothing.")
@click.option("--engine", default="local", show_default=True, help="Or ray, ray://HOST:PORT.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of trials.")
@click.option(
    "--database", type=click.Path(path_type=Path), help="By default $BUTTERFLYC_TUNE_DB, or yours."
)
@click.option(
    "--import", "taken", type=click.Path(path_type=Path), help="First add records from a .jsonl."
)
@click.option("--export", "given", type=click.Path(path_type=Path), help="Write records: a .jsonl.")
@click.option("--plot", type=click.Path(path_type=Path), help="The best so far: .svg or .png.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    model: str | None,
    target: str | None,
    mode: str | None,
    calibrate: Path | None,
    weight_snr: float | None,
    act_bits: int | None,
    angles: str | None,
    target_file: Path | None,
    budget: str,
    only: str,
    on: str,
    retry: bool,
    check: bool,
    engine: str,
    seed: int,
    database: Path | None,
    taken: Path | None,
    given: Path | None,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Tune MODEL (as `compile` takes it, or what it wrote): its kernels are tried in many ways.

    What was measured is kept at once: ^C and crashes lose nothing, the same command goes on. The
    next `compile` takes the best. Without MODEL, records are only imported and exported; with it,
    those of its kernels are exported.
    """
    one_thread()
    if model is None and not (taken or given):
        raise UsageError(
            "nothing to tune",
            help="name a model or an artefact; or --import or --export a file of records",
        )
    from ..tuning.database import default_path

    path = database or default_path()
    if taken:
        _import(path, taken)
    if model is None:
        if given:
            _export(path, given, None)
        return 0
    if plot:
        from ..tuning.plot import check_picture

        check_picture(plot)
    asked: dict[str, Any] = {
        "target": target,
        "mode": mode,
        "calibration": _samples(calibrate),
        "weight_snr": weight_snr,
        "act_bits": act_bits,
        "angles": angles,
        "target_file": target_file,
        "budget": budget,
        "only": only,
    }
    if check:
        return _check(model, as_json, asked)
    report = _tune(
        model,
        **asked,
        on=on,
        retry=retry,
        engine=engine,
        seed=seed,
        database=path,
    )
    if given:
        _export(path, given, report)
    if plot:
        from ..tuning.plot import write_plot

        write_plot(report, plot)
    if as_json:
        print_json("tune", report.as_dict())
    else:
        show_report(report)
    return INTERRUPTED if report.interrupted else 0


def _samples(path: Path | None) -> Any:
    from ._files import read_arrays

    return read_arrays(path)[0] if path else None


def _check(model: str, as_json: bool, asked: dict[str, Any]) -> int:
    from ..tuning.check import check

    with progress() as say:
        found = check(model, progress=say, **asked)
    if as_json:
        print_json("check", {"ways": [each.as_dict() for each in found]})
    else:
        show_checked(found)
    faults = [each.fault for each in found if each.is_default and each.fault]
    return ToolFailed.exit_status if faults else 0


def _tune(model: str, **options: Any) -> Report:
    from ..tuning.tune import tune

    with progress() as say:

        def on_trial(trial: Trial, state: CallProgress) -> None:
            say(kernel_line(trial, state))

        return tune(model, on_trial=on_trial, progress=say, **options)


def _import(database: Path, file: Path) -> None:
    from ..tuning.database import Database
    from ..tuning.exchange import import_into, read_trials

    trials = read_trials(file)
    with Database(database) as into:
        count = import_into(into, trials)
    click.echo(f"{count} of {len(trials)} records are new in {database}", err=True)


def _export(database: Path, file: Path, report: Report | None) -> None:
    """All records, or those of the kernels of ``report``."""
    from ..compiler.files import write_whole
    from ..tuning.database import Database
    from ..tuning.exchange import to_lines

    with Database(database, read_only=database.is_file()) as held:
        trials = list(held)
    if report is not None:
        tasks = {each.task for each in report.found}
        trials = [trial for trial in trials if trial.task in tasks]
    write_whole(file, [to_lines(trials)])
    click.echo(f"wrote {len(trials)} records to {file}", err=True)
