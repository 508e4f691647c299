"""``butterflyc compile``: a model to an artefact."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from ..compiler.errors import UsageError
from ._explain import show_explanation
from ._memory import show_placement
from ._output import bytes_text, print_columns, print_json
from ._progress import progress
from ._threads import one_thread
from ._tuning import tuning_text

if TYPE_CHECKING:
    from ..program import Program


@click.command()
@click.argument("model")
@click.option("-t", "--target", default="host", show_default=True, help="See `targets`.")
@click.option(
    "-m",
    "--mode",
    help="f32, a8 or int8; f16, bf16, f32 or i8 of a GPU. By default the target's first.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--calibrate", type=click.Path(path_type=Path), help="Samples: an .npz file.")
@click.option(
    "--weight-snr", type=float, metavar="DB", help="Of dense weights in int8; by default 40."
)
@click.option(
    "--threads", type=int, default=1, show_default=True, help="Of a CPU: the most at once."
)
@click.option("--act-bits", type=int, metavar="N", help="Of activations in a8: 8 (default) or 7.")
@click.option("--angles", help="Of rotations: i8, i16 or f16; by default as they are.")
@click.option("--prefer", help="In int8: speed (default), or size of the constants.")
@click.option("--name", default="bfly", show_default=True, help="Prefix of the C symbols.")
@click.option("--target-file", type=click.Path(path_type=Path), help="A core of your own: TOML.")
@click.option("--flash", help="Of a board: all its flash, as 8M.")
@click.option("--partition", help="Of a board: the part of its flash for the program, as 3M.")
@click.option("--sram", help="Of a board: the SRAM that the firmware leaves, as 200K.")
@click.option("--psram", help="Of a board: its PSRAM, as 8M.")
@click.option("--records", type=click.Path(path_type=Path), help="Of `tune`; by default your own.")
@click.option("--untuned", is_flag=True, help="Take no records of `tune`.")
@click.option("--dump-ir", type=click.Path(path_type=Path), help="Folder for each stage's text.")
@click.option("--keep-stages", is_flag=True, help="Keep the constants of all stages.")
@click.option("--explain", is_flag=True, help="Say what was recognised, and what passes did.")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    model: str,
    target: str,
    mode: str | None,
    output: Path,
    calibrate: Path | None,
    weight_snr: float | None,
    threads: int,
    act_bits: int | None,
    angles: str | None,
    prefer: str | None,
    name: str,
    target_file: Path | None,
    flash: str | None,
    partition: str | None,
    sram: str | None,
    psram: str | None,
    records: Path | None,
    untuned: bool,
    dump_ir: Path | None,
    keep_stages: bool,
    explain: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Compile MODEL: model.pt2, file.py:function, or a checkpoint.safetensors.

    OUTPUT is a .bfly file; or a folder, which also gets libraries and their header for C
    with a program on files of arrays, or what a build for a microcontroller takes.
    """
    one_thread()
    from ..targets.registry import load_core

    load_core(target, target_file)  # a wrong name is found before torch is loaded
    sizes = {"flash": flash, "partition": partition, "sram": sram, "psram": psram}
    folder = output.suffix != ".bfly"
    artefact = output / f"{name}.bfly" if folder else output
    if artefact.exists() and not force:
        raise UsageError(f"{artefact} exists", help="--force overwrites it")
    if records and untuned:
        raise UsageError("--records with --untuned", help="give one of them")
    from ..build import compile
    from ..explain import Record
    from ._files import read_arrays

    samples = read_arrays(calibrate)[0] if calibrate else None
    start = perf_counter()
    record = Record()
    try:
        with progress() as report:
            program = compile(
                model,
                target=target,
                mode=mode,
                calibration=samples,
                weight_snr=weight_snr,
                threads=threads,
                act_bits=act_bits,
                angles=angles,
                prefer=prefer,
                name=name,
                target_file=target_file,
                memories={name: size for name, size in sizes.items() if size is not None},
                records=not untuned if records is None else records,
                dump_ir=dump_ir,
                keep_stages=keep_stages,
                record=record,
                progress=report,
            )
            write(program, artefact, folder, force, report)
    except Exception:
        if explain:  # with --json, stdout holds the error's document
            show_explanation(record.explanation(), sys.stderr if as_json else None)
        raise
    explanation = record.explanation() if explain else None
    _tell(program, artefact, perf_counter() - start, explanation, as_json)


def _tell(
    program: Program,
    artefact: Path,
    seconds: float,
    explanation: dict[str, Any] | None,
    as_json: bool,
) -> None:
    """What was made, and the explanation if there is one."""
    if as_json:
        data = {"artefact": str(artefact), "seconds": seconds, **program.manifest}
        print_json(
            "compile", data | ({"explanation": explanation} if explanation is not None else {})
        )
        return
    _print(program, artefact, seconds)
    if explanation is not None:
        click.echo()
        show_explanation(explanation)


def write(
    program: Program,
    artefact: Path,
    folder: bool,
    force: bool,
    report: Callable[[str], None] = lambda _: None,
) -> None:
    """The artefact; in a folder also what a C program links with, and a program on files.

    Raises UsageError for files that would be overwritten, unless by ``force``.
    """
    from ..compiler.files import make_folder, write_whole
    from ..placed import programs_of
    from ..report import FOLDER

    sections = program.artefact.sections if folder else {}
    files = {
        artefact.parent / section.partition("/")[2]: content
        for section, content in sections.items()
        if section.startswith(("kernels/", FOLDER))
    }
    programs = programs_of(program, report) if folder else {}
    executable = {artefact.parent / name: content for name, content in programs.items()}
    files |= executable
    there = sorted(str(path) for path in files if path.exists())
    if there and not force:
        more = f" and {len(there) - 1} more files" if len(there) > 1 else ""
        raise UsageError(
            f"{there[0]}{more} would be overwritten",
            help="choose another folder, or overwrite them with --force",
        )
    if folder:
        make_folder(artefact.parent)
    program.save(artefact)  # this refuses names of sections that lead out of the folder
    for path, content in files.items():
        make_folder(path.parent)
        write_whole(path, [content], 0o777 if path in executable else 0o666)


def _print(program: Program, artefact: Path, seconds: float) -> None:
    census, memory = program.census, program.memory
    print_columns(
        [
            ("target", f"{program.target}, mode {program.mode}"),
            ("stages", " -> ".join(program.manifest["stages"])),
            ("layers", f"{census['recognised']} of {census['layers']} MoE layers recognised"),
            ("experts", f"{census['found']} of {census['choosable']} found"),
            ("weights", bytes_text(memory["weights"])),
            ("arena", bytes_text(memory["arena"])),
            ("tuned", tuning_text(program.manifest["tuning"])),
            *_threads(program),
            ("time", f"{seconds:.1f} s"),
        ]
    )
    if program.placement:
        show_placement(program.placement)
    click.echo(f"wrote {artefact}")
    click.echo(f"next: {next_commands(program, artefact)}")


def _threads(program: Program) -> list[tuple[str, str]]:
    """What several threads take; nothing of one."""
    if program.threads == 1:
        return []
    size = bytes_text(program.memory["arena_mt"])
    return [("threads", f"{program.threads}, in an arena of {size}")]


def next_commands(program: Program, artefact: Path) -> str:
    """The commands that read what was compiled, `verify` if there is a place to run it."""
    from ..compiler.lower.cross import architecture, this_architecture
    from ..compiler.run.machine import machine_names
    from ..compiler.run.user_mode import EMULATORS

    core = program.manifest["core"]
    runner, inspect = core["runner"], f"butterflyc inspect {artefact}"
    here = runner in EMULATORS and architecture(core["triple"]) == this_architecture()
    if program.is_for_gpu:
        return f"butterflyc verify {artefact} --interpret   {inspect}"
    if runner not in ("native", *EMULATORS, *machine_names()):
        return inspect
    on = "" if runner == "native" or here else " --on qemu"
    return f"butterflyc verify {artefact}{on}   {inspect}"
