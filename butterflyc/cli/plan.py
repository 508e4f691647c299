"""``butterflyc plan``: how many experts fit, before there is a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..compiler.errors import DoesNotFit
from ._output import print_columns, print_json
from ._progress import progress
from ._threads import one_thread

if TYPE_CHECKING:
    from ..budget import Budget

SIZES = {
    "d": (256, "Width of the model."),
    "ff": (1024, "Width of the experts."),
    "layers": (7, "All of them with experts."),
    "heads": (4, "Of attention."),
    "image": (32, "Pixels along an edge."),
    "channels": (3, "Of the image."),
    "patch": (4, "Pixels along an edge of a token."),
    "classes": (100, "Results."),
    "top-k": (2, "Experts that a token goes to."),
    "depth": (2, "Butterfly layers of a rotation, L."),
}


def _sizes(command: Any) -> Any:
    """The command with an option for each size of the model."""
    for name, (default, what) in reversed(SIZES.items()):
        kind = click.IntRange(min=1)
        option = click.option(f"--{name}", type=kind, default=default, show_default=True, help=what)
        command = option(command)
    return command


@click.command()
@click.option("-t", "--target", required=True, help="See `targets`.")
@_sizes
@click.option("--down", default="float", show_default=True, help="W_down: float or ternary.")
@click.option("-m", "--mode", help="As of `compile`; by default the target's first.")
@click.option("--angles", help="Of rotations: i8, i16 or f16; by default as they are.")
@click.option("--prefer", help="In int8: speed (default), or size of the constants.")
@click.option("--weight-snr", type=float, metavar="DB", help="Of dense weights in int8.")
@click.option("--memory", help="Of a CPU or GPU: what there is for the model, as 4GiB.")
@click.option("--code", help="How large the code is, as `compile` measured it: 40K.")
@click.option("--flash", help="Of a board: all its flash, as 8M.")
@click.option("--partition", help="Of a board: the part of its flash for the program, as 3M.")
@click.option("--sram", help="Of a board: the SRAM that the firmware leaves, as 200K.")
@click.option("--psram", help="Of a board: its PSRAM, as 8M.")
@click.option("--target-file", type=click.Path(path_type=Path), help="A core of your own: TOML.")
@click.option("--advise", is_flag=True, help="Try what would make room for more.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(
    target: str,
    d: int,
    ff: int,
    heads: int,
    top_k: int,
    depth: int,
    down: Any,
    advise: bool,
    as_json: bool,
    flash: str | None,
    partition: str | None,
    sram: str | None,
    psram: str | None,
    **others: Any,
) -> None:
    """Say how many experts of a ButterflyViT fit a target, and what one more takes.

    By default the model is the papers'. It is lowered as `compile` would, with random weights, with
    as many experts as fit and with one more.
    """
    one_thread()
    from ..budget import experts_that_fit, memories_of

    sizes = {"flash": flash, "partition": partition, "sram": sram, "psram": psram}
    given = {name: size for name, size in sizes.items() if size is not None}
    # What is wrong with these is found before torch is loaded.
    memories_of(target, others["target_file"], given, others["memory"])
    from ..models.butterfly import ButterflyConfig
    from ..models.vit import ViTConfig

    shape = {name: others.pop(name) for name in ("layers", "image", "channels", "patch", "classes")}
    mlp = ButterflyConfig(d, ff, max(8, top_k), top_k, depth, depth, down=down)
    config = ViTConfig(d_model=d, heads=heads, mlp=mlp, **shape)
    with progress() as report:
        budget = experts_that_fit(
            target, config, memories=given, advise=advise, progress=report, **others
        )
    if budget.error:
        raise _with_advice(budget, budget.error)
    if as_json:
        print_json("plan", budget.as_dict())
    else:
        show(budget)


def _with_advice(budget: Budget, error: DoesNotFit) -> DoesNotFit:
    """The error with what was tried, and with what is not known of the code."""
    lines = [error.help or "", *_advice(budget)]
    if budget.without_code:
        lines.append(
            f"`compile` measures the code, which is estimated high here: without any "
            f"{budget.without_code:,} experts would fit"
        )
    return DoesNotFit(error.what, where=error.where, help="\n        ".join(filter(None, lines)))


def show(budget: Budget) -> None:
    """The number of experts, then what is in each memory, then what one more takes."""
    model = budget.model
    mlp = model["mlp"]
    tokens = (model["image"] // model["patch"]) ** 2 + 1
    print_columns(
        [
            ("target", f"{budget.target}, mode {budget.mode}{_options(budget)}"),
            (
                "model",
                f"ButterflyViT, d = {model['d_model']:,}, F = {mlp['d_ff']:,}, "
                f"{_layers(budget)}, {model['heads']} heads, {tokens} tokens, top-{mlp['top_k']}, "
                f"L = {mlp['layers_in']}, {mlp['down']} W_down",
            ),
            ("experts", f"{budget.experts:,} a layer fit"),
            ("checked", _checked(budget)),
        ]
    )
    click.echo()
    print_columns(list(_memories(budget)))
    click.echo()
    for line in _lines(budget):
        click.echo(line)


def _layers(budget: Budget) -> str:
    count = budget.model["layers"]
    return f"{count} layer{'s' if count > 1 else ''}"


def _options(budget: Budget) -> str:
    said = {"angles": budget.options["angles"], "prefer": budget.options["prefer"]}
    return "".join(f", {name} {value}" for name, value in said.items() if value)


def _checked(budget: Budget) -> str:
    if budget.checked:
        return (
            f"lowered with {budget.experts:,} experts, which fit, and with "
            f"{budget.experts + 1:,}, which do not"
        )
    return f"no: foretold from the same model lowered with {budget.lowered:,} experts"


def _memories(budget: Budget) -> Iterator[tuple[str, ...]]:
    """A row a memory."""
    code = "code" if budget.has_code else "code, not counted"
    yield "bytes", "usable", "shared weights", "experts' own", "activations", code, "left"
    for share in budget.memories:
        sizes = share.usable, share.shared, share.experts, share.activations, share.code, share.left
        yield share.memory, *(f"{size:,}" for size in sizes)


def _lines(budget: Budget) -> Iterator[str]:
    takes = ", ".join(f"{share.one_more:,} B of {share.memory}" for share in budget.memories)
    yield f"one more expert: {takes} ({_layers(budget)})"
    yield f"what binds: {' and '.join(budget.binds)}"
    if budget.without_code > budget.experts:
        yield f"the code is estimated high; without any {budget.without_code:,} would fit"
    yield from _advice(budget)
    yield f"took {budget.seconds:.1f} s"


def _advice(budget: Budget) -> Iterator[str]:
    """What was tried and makes room for more, and for how many."""
    for option, experts in budget.advice:
        yield f"{option}: {experts:,} experts, as foretold"
