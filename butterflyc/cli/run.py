"""``butterflyc run``: arrays through a compiled model."""

from __future__ import annotations

from pathlib import Path

import click

from ._output import print_json
from ._progress import progress


@click.command()
@click.argument("artefact", type=click.Path(path_type=Path))
@click.option("--inputs", type=click.Path(path_type=Path), required=True, help="An .npz file.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="An .npz file.")
@click.option("--on", "place", default="native", help="native, qemu, or ssh:HOST.")
@click.option(
    "--interpret",
    "place",
    flag_value="interpreter",
    help="What is for a GPU: on this CPU, by Triton's interpreter.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(artefact: Path, inputs: Path, out: Path, place: str, as_json: bool) -> None:
    """Run ARTEFACT on the arrays of --inputs, in the order of the model's inputs.

    The first axis may be any multiple of the compiled batch.
    """
    from ..placed import check_place
    from ..program import load
    from ._files import read_arrays, write_arrays

    check_place(place)
    program = load(artefact)
    with progress(quiet=place == "native") as report:
        on = program.on(place, report)
        results = list(on.run(*read_arrays(inputs)))
    names = [port["name"] for port in program.manifest["outputs"]]
    write_arrays(out, names, results)
    shapes = {name: list(array.shape) for name, array in zip(names, results, strict=True)}
    if as_json:
        cost = {"instructions": on.instructions, "stack_bytes": on.stack_bytes}
        print_json("run", {"out": str(out), "outputs": shapes, **cost})
    else:
        click.echo(f"wrote {out}: " + ", ".join(f"{n} {s}" for n, s in shapes.items()))
        if on.instructions:
            least, most = min(on.instructions), max(on.instructions)
            click.echo(
                f"{least:,} to {most:,} instructions a run, {on.stack_bytes:,} bytes of stack"
            )
