"""``butterflyc targets``: what can be compiled for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ._output import bytes_text, print_columns, print_json


@click.command()
@click.argument("name", required=False)
@click.option(
    "--target-file",
    type=click.Path(path_type=Path),
    help="A core or board of your own, in TOML; give its name as NAME.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(name: str | None, target_file: Path | None, as_json: bool) -> None:
    """List the cores and boards that can be compiled for, or show one in full."""
    from ..targets import registry

    names = [name] if name else registry.core_names()
    cores = [registry.describe(each, target_file) for each in names]
    if as_json:
        print_json("targets", {"targets": cores})
    elif name:
        memories = cores[0].pop("memories")
        cores[0] |= cores[0].pop("gpu") or {}
        values = [
            (key, " ".join(value) if isinstance(value, tuple) else value)
            for key, value in cores[0].items()
            if value is not None
        ]
        sizes = [(f"memory {memory['name']}", _memory(memory)) for memory in memories]
        print_columns([*values, *sizes])
    else:
        rows = [
            (core["name"], core["family"], core["description"], _usable(core["memories"]))
            for core in cores
        ]
        print_columns(rows)


def _memory(memory: Mapping[str, Any]) -> str:
    """A memory of a board in full."""
    text = f"{bytes_text(memory['usable'])} usable of {bytes_text(memory['nominal'])}"
    return f"{text}, on some boards (--psram)" if memory["optional"] else text


def _usable(memories: Sequence[Mapping[str, Any]]) -> str:
    """What a board has for a model, in a few words."""
    there = [memory for memory in memories if not memory["optional"]]
    return ", ".join(f"{memory['name']} {bytes_text(memory['usable'])}" for memory in there)
