"""``butterflyc demo``: the shipped digits model, compiled, verified and timed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..compiler.errors import VerificationFailed
from ._output import bytes_text, print_columns, print_json
from ._progress import progress
from ._threads import one_thread

if TYPE_CHECKING:
    from ..demo import Demo


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="bfly-demo",
    show_default=True,
    help="Folder to write to.",
)
@click.option("-m", "--mode", default="f32", show_default=True, help="f32, a8 or int8.")
@click.option("--train", is_flag=True, help="Train the model afresh first (may take an hour).")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Another one, with images.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    output: Path, mode: str, train: bool, checkpoint: Path | None, as_json: bool
) -> int | None:
    """Compile a ButterflyViT trained on scanned digits, and compare it with PyTorch."""
    one_thread()
    from ..demo import demo, train_afresh
    from ..models.checkpoint import DIGITS

    source = train_afresh(output) if train else checkpoint or DIGITS
    with progress() as report:
        outcome = demo(output, source, mode=mode, progress=report)
    if as_json:
        print_json("demo", outcome.as_dict())
    else:
        _print(outcome)
    return None if outcome.verification.passed else VerificationFailed.exit_status


def _print(outcome: Demo) -> None:
    found, census, memory = outcome.verification, outcome.program.census, outcome.program.memory
    times = f"{outcome.times_as_fast:.2f} times as fast as PyTorch (spread {outcome.spread:.2f})"
    print_columns(
        [
            ("experts", f"{census['found']} of {census['choosable']} found"),
            ("accuracy", f"{found.accuracy:.2%}, PyTorch {found.model_accuracy:.2%}"),
            ("same answer", f"{found.top1_agreement:.2%} of {found.samples} test images"),
            ("largest error", f"{found.max_rel:.2e} relative, limit {found.limit:g}"),
            ("one image", f"{outcome.milliseconds:.3f} ms on one core, {times}"),
            ("weights", bytes_text(memory["weights"])),
            ("arena", bytes_text(memory["arena"])),
            ("verified", "PASS" if found.passed else "FAIL"),
        ]
    )
    click.echo(f"\nwrote {outcome.artefact}. Next:")
    for line in ("inspect ", "verify "):
        click.echo(f"  butterflyc {line}{outcome.artefact}")
