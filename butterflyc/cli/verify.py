"""``butterflyc verify``: does an artefact still compute what its source does?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..compiler.errors import UsageError, VerificationFailed
from ._output import print_columns, print_json
from ._progress import progress
from ._threads import one_thread

if TYPE_CHECKING:
    from ..verify import Verification


@click.command()
@click.argument("artefact", type=click.Path(path_type=Path))
@click.option("--against", help="The MODEL it was compiled from, as `compile` takes it.")
@click.option("--inputs", type=click.Path(path_type=Path), help="Samples: an .npz file.")
@click.option("--labels", type=click.Path(path_type=Path), help="Their classes: an .npz file.")
@click.option("--on", "place", default="native", help="native, qemu, or ssh:HOST.")
@click.option(
    "--interpret",
    "place",
    flag_value="interpreter",
    help="What is for a GPU: on this CPU, by Triton's interpreter.",
)
@click.option("--bisect", is_flag=True, help="Find the first pass beyond its limit.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    artefact: Path,
    against: str | None,
    inputs: Path | None,
    labels: Path | None,
    place: str,
    bisect: bool,
    as_json: bool,
) -> None:
    """Compare ARTEFACT with its model; without --against, with the golden pairs it carries."""
    one_thread()
    from ..placed import check_place
    from ..program import load
    from ._files import read_arrays

    if inputs and not against:
        raise UsageError("--inputs needs a model to compare with", help="give --against MODEL")
    check_place(place)
    program = load(artefact)
    samples = read_arrays(inputs) if inputs else None
    classes = read_arrays(labels)[0] if labels else None
    from ..check import check

    with progress() as report:
        on = program.on(place, report)
        outcome = check(program, against, samples, classes, bisect=bisect, on=on, progress=report)
    if as_json:
        print_json("verify", outcome.as_dict())
    else:
        show(outcome)
    if not outcome.passed:
        raise VerificationFailed(
            f"sample {outcome.worst_sample} differs by {outcome.max_rel:.3g} relative, "
            f"{outcome.limit:g} allowed",
            where=outcome.first_failing_stage,
            help="--bisect names the first pass beyond its limit; please report it",
        )


def show(outcome: Verification) -> None:
    """The outcome as a table."""
    rows: list[tuple[str, Any]] = [
        ("against", f"{outcome.against}, {outcome.samples} samples"),
        ("largest error", f"{outcome.max_rel:.2e} relative (limit {outcome.limit:g})"),
        ("top-1 agreement", f"{outcome.top1_agreement:.2%}"),
    ]
    if outcome.routing_agreement is not None:
        rows.append(("routing agreement", f"{outcome.routing_agreement:.2%}"))
    if outcome.instructions:
        least, most = min(outcome.instructions), max(outcome.instructions)
        rows.append(("instructions", f"{least:,} to {most:,} a run"))
        rows.append(("stack", f"{outcome.stack_bytes:,} bytes"))
    if outcome.accuracy is not None:
        both = f"{outcome.accuracy:.2%}, PyTorch {outcome.model_accuracy:.2%}"
        rows.append(("accuracy", both))
    if outcome.near_ties:
        forced = outcome.forced_max_rel
        text = "not compared" if forced is None else f"{forced:.2e} with routing forced"
        rows.append(("near-ties", f"samples {list(outcome.near_ties)}: {text}"))
    print_columns(rows)
    if outcome.stages:
        click.echo()
        header = ("stage", "kind", "largest error", "limit", "routing", "")
        print_columns(
            [header]
            + [
                (
                    stage.stage,
                    "exact" if stage.exact else "lossy",
                    f"{stage.max_rel:.2e}",
                    f"{stage.limit:g}",
                    f"{stage.routing_agreement:.2%}",
                    "ok" if stage.passed else "FAILED",
                )
                for stage in outcome.stages
            ]
        )
    click.echo("PASS" if outcome.passed else "FAIL")
