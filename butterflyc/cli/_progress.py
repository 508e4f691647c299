"""What is going on, on stderr: one changing line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

import click


@contextmanager
def progress(quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """A function to call with each new step. Silent if ``quiet``."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status("starting") as status:
            yield status.update
    else:
        start = perf_counter()
        yield lambda step: click.echo(f"[{perf_counter() - start:6.1f} s] {step}", err=True)
