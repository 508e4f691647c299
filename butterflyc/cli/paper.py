"""``butterflyc paper``: the papers' tables and figures, computed and measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..compiler.errors import UsageError
from ._output import print_columns, print_json
from ._progress import progress
from ._threads import one_thread

if TYPE_CHECKING:
    from ..paper.report import Report


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for README.md, paper.json and pictures.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="A trained ButterflyViT with test images, in place of our own models.",
)
@click.option(
    "--standard",
    type=click.Path(path_type=Path),
    help="With --checkpoint: a trained StandardMoE ViT, to compare.",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="With --checkpoint: a trained Butterfly language model, to measure too.",
)
@click.option(
    "--quick", is_flag=True, help="Compile nothing: leave out what is measured on artefacts."
)
@click.option(
    "--train",
    is_flag=True,
    help="Train and compile all models of the report afresh, in OUTPUT/runs. It takes many hours, "
    "and goes on there when it is started again, with --force.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="With --train: the unpacked cifar-100-python, to train on it as well.",
)
@click.option("--force", is_flag=True, help="Overwrite the report in a folder that is not empty.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    output: Path,
    checkpoint: Path | None,
    standard: Path | None,
    text: Path | None,
    quick: bool,
    train: bool,
    data: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write the papers' tables and figures: as printed, by formula, as measured."""
    one_thread()
    if data is not None and not train:
        raise UsageError("--data goes with --train", help="butterflyc paper --train --data FOLDER")
    if checkpoint is None and (standard or text):
        raise UsageError(
            "--standard and --text go with --checkpoint",
            help="without it, our own models are measured",
        )
    from ..paper.artefacts import measured_sizes
    from ..paper.drawing import matplotlib
    from ..paper.report import build, check_folder, write
    from ..paper.trained import read
    from ..paper.training import SHIPPED, Checkpoints, train_all, trained_in

    check_folder(output, force)
    matplotlib()  # it is missed now, and not after minutes
    runs = output / "runs"
    trained = train_all(runs, data) if train else read()
    ours = trained_in(runs) if train else SHIPPED
    models = Checkpoints(checkpoint, standard, text) if checkpoint else ours
    with progress() as report:
        made = build(
            models.butterfly,
            standard=models.standard,
            text=models.text,
            measured={} if quick else measured_sizes(report),
            trained=trained,
            progress=report,
        )
        paths = write(made, output, force=force)
    if as_json:
        print_json("paper", {"files": [str(path) for path in paths], **made.as_dict()})
    else:
        _print(made, output)


def _print(made: Report, folder: Path) -> None:
    rows = [("table", "rows", "measured", "picture")]
    for table in made.tables:
        measured = sum(row.measured is not None for row in table.rows)
        rows.append((table.title, str(len(table.rows)), str(measured), table.picture or ""))
    print_columns(rows)
    click.echo(f"wrote {folder / 'README.md'}")
