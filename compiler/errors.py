"""Errors that a person meets: what is wrong, where, and what to do next.

Each class has a stable ``code`` (``BF201`` ...) and the ``exit_status`` with which the command line
ends: 1 bug, 2 usage, 3 unsupported model, 4 does not fit, 5 verification failed, 6 damaged or
incompatible artefact, 7 toolchain or device missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ButterflycError(Exception):
    """Base of all errors: ``what`` (one sentence with the figures), ``where``, ``help``."""

    code = "BF999"
    exit_status = 1

    def __init__(self, what: str, *, where: str | None = None, help: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.help = help

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  at {self.where}")
        if self.help:
            lines.append(f"  help: {self.help}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """The error as plain data, for ``--json``."""
        return {
            "code": self.code,
            "exit_status": self.exit_status,
            "what": self.what,
            "where": self.where,
            "help": self.help,
        }


class InvalidGraph(ButterflycError):
    """A graph breaks a rule of the IR; the message shows the graph with the bad op marked."""

    code = "BF101"


class UsageError(ButterflycError):
    """The call itself is wrong: a bad name, a bad value, a missing input file."""

    code = "BF200"
    exit_status = 2


class UnknownName(UsageError):
    """A name that is not known; ``help`` gives the nearest known ones."""

    code = "BF201"


class BadInput(UsageError):
    """An input array has the wrong shape or dtype, or holds NaN where none may be."""

    code = "BF203"


class Unsupported(ButterflycError):
    """The model uses something that cannot be compiled; every such place is listed at once."""

    code = "BF301"
    exit_status = 3


class DoesNotFit(ButterflycError):
    """The compiled model needs more memory than the target has."""

    code = "BF401"
    exit_status = 4


class VerificationFailed(ButterflycError):
    """A result differs from its reference by more than its limit."""

    code = "BF501"
    exit_status = 5


class Damaged(ButterflycError):
    """A file is cut short, changed, or not of the kind it should be; the bad section is named."""

    code = "BF601"
    exit_status = 6


class Incompatible(ButterflycError):
    """An artefact needs a newer schema, or a CPU feature that this machine lacks."""

    code = "BF602"
    exit_status = 6


class ToolMissing(ButterflycError):
    """A compiler, an emulator, an optional package or a GPU that is needed is not there."""

    code = "BF701"
    exit_status = 7


class CannotWrite(ButterflycError):
    """The output could not be written; nothing half-written is left behind."""

    code = "BF702"
    exit_status = 7


class ToolFailed(ButterflycError):
    """A program of others crashed, or took longer than it may; ``what`` names the signal."""

    code = "BF703"
    exit_status = 7


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    """The error for an unknown ``name``: lists the nearest known names, then all of them."""
    names = sorted(known)
    near = get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}. " if near else ""
    return UnknownName(f"unknown {kind} '{name}'", help=f"{hint}known: {', '.join(names)}")
