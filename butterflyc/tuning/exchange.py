"""Trials as lines of JSON, to be kept beside a model and read on another machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from ..compiler.errors import Damaged, UsageError
from .database import Database
from .trial import Trial

if TYPE_CHECKING:
    from cattrs import Converter

SCHEMA = "butterflyc.trials/1"


def to_lines(trials: Iterable[Trial]) -> bytes:
    """The schema, then a trial a line, sorted: the same trials make the same bytes."""
    lines = sorted(json.dumps(attrs.asdict(trial), sort_keys=True) for trial in trials)
    return "".join(f"{line}\n" for line in (json.dumps({"schema": SCHEMA}), *lines)).encode()


def from_lines(content: bytes, name: str) -> tuple[Trial, ...]:
    """What `to_lines` made. Raises Damaged for anything else, with the file's ``name``."""
    converter, found = _converter(), []
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            if number == 1:
                _check_schema(line)
            elif line:
                found.append(converter.structure(json.loads(line), Trial))
        except Exception as error:  # cattrs' errors have no common base
            raise Damaged(
                f"line {number} of {name} holds no tuning record: {type(error).__name__}: {error}",
                help="export the records again, by the butterflyc that is to read them",
            ) from error
    return tuple(found)


def read_trials(path: Path) -> tuple[Trial, ...]:
    """Those of the file ``path``. Raises UsageError if it cannot be read, Damaged for others."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror or error}",
            help="give what `butterflyc tune --export FILE.jsonl` wrote",
        ) from error
    return from_lines(content, path.name)


def _check_schema(line: bytes) -> None:
    if json.loads(line) != {"schema": SCHEMA}:
        raise ValueError(f"it does not begin with the schema {SCHEMA}")


def _converter() -> Converter:
    from cattrs import Converter

    return Converter(forbid_extra_keys=True)


def import_into(database: Database, trials: Iterable[Trial]) -> int:
    """How many of ``trials`` the database did not have yet, and now has."""
    return sum(map(database.add, trials))
