"""``butterflyc doctor``: what this machine has."""

from __future__ import annotations

from typing import Any

import click

from ._output import print_columns, print_json


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(as_json: bool) -> None:
    """List the packages, compilers and emulators that were found, and what each is for."""
    from ..doctor import examine

    found = examine()
    if as_json:
        print_json("doctor", found)
        return
    click.echo(f"Python {found['python']} on {found['platform']}")
    for kind in ("packages", "programs"):
        click.echo(f"\n{kind}")
        print_columns([_row(item) for item in found[kind]], indent="  ")


def _row(item: dict[str, Any]) -> tuple[str, str, str, str]:
    state = "ok" if item["found"] else "-"
    return state, item["name"], item["for"], item["version"] or ("" if item["found"] else "missing")
