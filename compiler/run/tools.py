"""Programs of others: compilers that must succeed, and emulators that must end in time."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

import attrs

from ..errors import ToolFailed

TOOL_SECONDS = 300
FIRST_LINES = 20


@attrs.frozen
class Ended:
    """How an emulator ended: its status, what it wrote, and ``why`` it was stopped, if it was."""

    status: int
    data: bytes
    why: str | None = None


def run_tool(command: Sequence[str], folder: Path) -> str:
    """What ``command`` prints when run in ``folder``.

    Raises ToolFailed with the first lines of its messages if it fails or takes over 5 minutes.
    """
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            check=False,
            timeout=TOOL_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolFailed(f"{command[0]} took more than {TOOL_SECONDS} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        more = (
            [f"... and {len(lines) - FIRST_LINES} more lines"] if len(lines) > FIRST_LINES else []
        )
        shown = "\n".join([*lines[:FIRST_LINES], *more])
        raise ToolFailed(
            f"{command[0]} {_ending(done.returncode)}:\n{shown}",
            help=f"the command was: {shlex.join(command)}",
        )
    return done.stdout


def version_of(command: str) -> str:
    """What stands behind the word "version" where ``command --version`` says it first."""
    words = run_tool([command, "--version"], Path.cwd()).split()
    return words[words.index("version") + 1]


def limited(command: Sequence[str], seconds: float, max_bytes: int) -> Ended:
    """The end of ``command``, which is stopped after ``seconds``, or after ``max_bytes`` of output.

    Raises ToolFailed if the command itself dies, or fails with a message of its own.
    """
    until = time.monotonic() + seconds
    with (
        TemporaryFile() as errors,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        ) as process,
    ):
        assert process.stdout is not None, "it was asked for"
        try:
            data, complete = _read(process.stdout.fileno(), until, max_bytes)
            if not complete:
                why = (
                    f"wrote more than {max_bytes:,} bytes"
                    if len(data) > max_bytes
                    else f"was still running after {seconds:g} s"
                )
                return Ended(-1, data, why)
            status = process.wait()
        finally:
            process.kill()
        errors.seek(0)
        message = errors.read().decode(errors="backslashreplace").strip()
    if status < 0 or (status > 0 and message.startswith(f"{command[0]}:")):
        raise ToolFailed(
            f"{command[0]} {_ending(status)}:\n{message[-2000:]}",
            help=f"the command was: {shlex.join(command)}",
        )
    return Ended(status, data)


def _read(handle: int, until: float, max_bytes: int) -> tuple[bytes, bool]:
    """What comes from ``handle``, and whether that is all: else it is late, or too much."""
    pieces: list[bytes] = []
    size = 0
    while size <= max_bytes:
        if not select.select([handle], [], [], max(0.0, until - time.monotonic()))[0]:
            break
        piece = os.read(handle, 1 << 16)
        if not piece:
            return b"".join(pieces), True
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces), False


def _ending(status: int) -> str:
    if status >= 0:
        return f"failed with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
