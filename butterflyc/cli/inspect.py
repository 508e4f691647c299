"""``butterflyc inspect``: what a compiled model is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from ._output import bytes_text, print_columns, print_json


@click.command()
@click.argument("artefact", type=click.Path(path_type=Path))
@click.argument(
    "view",
    type=click.Choice(["summary", "manifest"]),
    metavar="[summary|manifest]",
    default="summary",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(artefact: Path, view: str, as_json: bool) -> None:
    """Show what a compiled model is: a .bfly file, or the folder that holds one."""
    from ..compiler.artefact import read

    manifest = read(artefact).manifest
    if view == "manifest":
        print_json("inspect.manifest", {"manifest": manifest})
    elif as_json:
        print_json("inspect.summary", summary(manifest))
    else:
        _print_summary(summary(manifest))


def summary(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What matters in a manifest, in the order in which a person asks for it."""
    keys = ("name", "target", "mode", "inputs", "outputs", "stages", "census", "memory", "tools")
    sections = {name: entry["bytes"] for name, entry in manifest["hashes"].items()}
    return {**{key: manifest.get(key) for key in keys}, "sections": sections}


def _print_summary(data: Mapping[str, Any]) -> None:
    text: dict[str, Callable[[Any], str]] = {
        "inputs": lambda tensors: ", ".join(map(_tensor, tensors)),
        "outputs": lambda tensors: ", ".join(map(_tensor, tensors)),
        "stages": " -> ".join,
        "census": _pairs,
        "memory": _sizes,
        "tools": _pairs,
        "sections": _sizes,
    }
    print_columns([(key, text.get(key, str)(value)) for key, value in data.items() if value])


def _tensor(tensor: Mapping[str, Any]) -> str:
    return f"{tensor['name']} {tensor['dtype']}[{'x'.join(map(str, tensor['shape']))}]"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _sizes(values: Mapping[str, int]) -> str:
    return ", ".join(f"{key} {bytes_text(value)}" for key, value in values.items())
