"""The MLIR view of a model, by torch-mlir, which may crash: so it runs in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .compiler.errors import ButterflycError, ToolFailed, ToolMissing, Unsupported, UsageError

# What torch-mlir is asked for, by the name that `--mlir` takes.
DIALECTS = {"torch": "torch", "linalg": "linalg-on-tensors", "raw": "raw"}
INSTALL = 'pip install "butterflyc[mlir]"'
_LOCATION = re.compile(r'"([^"]+)":(\d+)')
_MOST_LINES = 6
_MOST_LETTERS = 400
_ADVICE = {
    "SIGKILL": "the system stopped it, most often because memory ran out: take a smaller model, "
    "or one of its layers",
    "SIGABRT": "memory ran out, or torch-mlir found a fault of its own: take a smaller model",
}
_FAULT = "this is a fault of torch-mlir, not of the model"
_RAW = "--mlir=raw shows the program as it is read in, without torch-mlir's passes"


def view(
    model: str, dialect: str = "torch", seconds: float = 300, child: Sequence[str] | None = None
) -> str:
    """The program captured from ``model`` (as `compile` takes it) in one of DIALECTS.

    ``child`` is the command in place of our own. Raises ToolMissing where torch-mlir is not
    installed, ToolFailed where it crashes or needs more than ``seconds``, Unsupported with its own
    message for what it cannot lower, and what capture raises.
    """
    if seconds <= 0:
        raise UsageError(
            f"a time limit of {seconds:g} s", help="--time-limit takes seconds above 0"
        )
    if child is None:
        _check_installed()
        child = [sys.executable, "-m", f"{__package__}.mlir_child"]
    with tempfile.TemporaryDirectory(prefix="butterflyc-mlir-") as folder:
        answer = Path(folder) / "answer.json"
        # torch-mlir leaves files for its developers in TMPDIR.
        environment = {**os.environ, "TMPDIR": folder}
        try:
            done = subprocess.run(
                [*child, model, DIALECTS[dialect], str(answer)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                env=environment,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ToolFailed(
                f"torch-mlir was stopped after {seconds:g} s without a result",
                help=_advice(dialect, "--time-limit gives it more"),
            ) from error
        if done.returncode < 0:
            raise _crash(-done.returncode, done.stderr, dialect)
        if done.returncode or not answer.exists():
            raise ToolFailed(
                f"the process that runs torch-mlir ended with status {done.returncode}"
                f"{_tail(done.stderr)}",
                help="please report it, with what was printed",
            )
        return _text_of(json.loads(answer.read_text()), done.stderr, dialect)


def _check_installed() -> None:
    for module, name, command in (
        ("torch_mlir", "torch-mlir", INSTALL),
        ("torch", "PyTorch", 'pip install "butterflyc[compile]"'),
    ):
        if find_spec(module) is None:
            raise ToolMissing(f"the MLIR view needs {name}, which is not installed", help=command)


def _crash(number: int, printed: str, dialect: str) -> ToolFailed:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    help = _advice(dialect, _ADVICE.get(name, _FAULT))
    return ToolFailed(f"torch-mlir crashed with {name}{_tail(printed)}", help=help)


def _tail(printed: str) -> str:
    """The last lines of what a process printed, to stand behind what happened to it."""
    lines = [line.rstrip()[:_MOST_LETTERS] for line in printed.splitlines() if line.strip()]
    return "".join(f"\n  | {line}" for line in lines[-_MOST_LINES:])


def _text_of(answer: dict[str, Any], printed: str, dialect: str) -> str:
    """The text of the child's answer, or the error in it, raised."""
    if "text" in answer:
        return str(answer["text"])
    if "error" in answer:
        raise _error_of(answer["error"])
    lines = list(_diagnostics(printed))
    lines = lines or [("", line) for line in str(answer["refused"]).splitlines() if line.strip()]
    shown = [": ".join(filter(None, line))[:_MOST_LETTERS] for line in lines[:_MOST_LINES]]
    more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    raise Unsupported(
        "torch-mlir does not lower this model:\n  " + "\n  ".join([*shown, *more]),
        where=next((place for place, _ in lines if place), None),
        help=_advice(dialect, "`butterflyc compile` does not need torch-mlir"),
    )


def _diagnostics(printed: str) -> Iterator[tuple[str, str]]:
    """The errors that torch-mlir printed, past Python: ``file.py:line`` innermost, and message."""
    for line in printed.splitlines():
        head, error, message = line.partition("error: ")
        if error and head.startswith("loc("):
            place = _LOCATION.search(head)
            yield f"{Path(place[1]).name}:{place[2]}" if place else "", message.strip()


def _advice(dialect: str, *words: str) -> str:
    return "; ".join([*words, *([_RAW] if dialect != "raw" else [])])


def _error_of(data: dict[str, Any]) -> ButterflycError:
    """An error of ours that was raised in the child."""
    kinds = {kind.code: kind for kind in _kinds(ButterflycError)}
    return kinds[data["code"]](data["what"], where=data["where"], help=data["help"])


def _kinds(kind: type[ButterflycError]) -> list[type[ButterflycError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _kinds(child))]
