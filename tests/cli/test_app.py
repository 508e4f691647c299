"""The command line has one shape of error, and the exit status that goes with each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from butterflyc import __version__
from butterflyc.cli import app as front
from butterflyc.cli import targets as targets_command
from butterflyc.compiler import errors


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """From here on `butterflyc targets` ends with this error."""

    def raise_it(**_: object) -> None:
        raise error

    monkeypatch.setattr(targets_command.command, "callback", raise_it)


@pytest.mark.parametrize(
    "kind",
    [
        errors.InvalidGraph, errors.UsageError, errors.Unsupported, errors.DoesNotFit,
        errors.VerificationFailed, errors.Damaged, errors.Incompatible, errors.ToolMissing,
        errors.CannotWrite, errors.ToolFailed,
    ],
)  # fmt: skip
def test_our_errors_have_one_shape(
    kind: type[errors.ButterflycError],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What, where and help are printed on stderr; the exit status is the error's own."""
    fail_with(monkeypatch, kind("seven is eight", where="vit.py:41", help="count again"))
    assert front.run(["targets"]) == kind.exit_status
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error[{kind.code}]: seven is eight\n  at vit.py:41\n  help: count again\n"


def test_error_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json, stdout holds one document also when the command fails."""
    fail_with(monkeypatch, errors.DoesNotFit("too large"))
    assert front.run(["targets", "--json"]) == 4
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["schema"] == "butterflyc.error/1"
    assert document["error"]["code"] == "BF401"
    assert document["error"]["exit_status"] == 4
    assert err == "error[BF401]: too large\n"


def test_failed_verification_adds_no_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify --json` has printed its outcome when it fails: stdout gets no second document."""
    fail_with(monkeypatch, errors.VerificationFailed("sample 3 differs"))
    assert front.run(["targets", "--json"]) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error[BF501]: sample 3 differs\n"


def test_bug_asks_for_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fault of ours is told as such, with its place; the traceback only when asked for."""
    fail_with(monkeypatch, ZeroDivisionError("by zero"))
    monkeypatch.delenv("BUTTERFLYC_DEBUG", raising=False)
    assert front.run(["targets"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("internal error[BF999]: ZeroDivisionError: by zero\n  at ")
    assert "in raise_it" in err
    assert "please report it" in err
    assert "Traceback" not in err
    monkeypatch.setenv("BUTTERFLYC_DEBUG", "1")
    assert front.run(["targets"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_interrupt(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control-C ends with 130 and no traceback."""
    fail_with(monkeypatch, error)
    assert front.run(["targets"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("targts", "error[BF201]: unknown command 'targts'\n  help: nearest: targets. known:"),
        ("targets --jsn", "error[BF200]: No such option"),
        ("inspect", "error[BF200]: Missing argument 'ARTEFACT'"),
        ("inspect a.bfly everything", "unknown view 'everything'"),
        ("--nothing", "error[BF200]: No such option"),
        ("targets x86-64v3", "error[BF201]: unknown target 'x86-64v3'\n  help: nearest: x86-64-v3"),
    ],
)
def test_wrong_command_line(line: str, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake in the command line ends with 2, and says what there is."""
    assert front.run(line.split()) == 2
    err = capsys.readouterr().err
    assert what in err
    assert "\n  help: " in err


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Alone, the program lists its commands."""
    assert front.run([]) == 2
    assert "targets" in capsys.readouterr().err


def test_help_lists_a_command_for_each_file(capsys: pytest.CaptureFixture[str]) -> None:
    """A file in cli/ is a command, listed with one line about it."""
    assert front.run(["--help"]) == 0
    out = capsys.readouterr().out
    folder = Path(front.__file__).parent
    names = {path.stem for path in folder.glob("[a-z]*.py")} - {"app"}
    assert {"doctor", "inspect", "targets"} <= names
    for name in names:
        assert any(len(line.split()) > 3 for line in out.splitlines() if f"  {name} " in line), name


def test_python_m_butterflyc() -> None:
    """`python -m butterflyc` is the same command, and hands on the exit status."""
    command = [sys.executable, "-m", "butterflyc"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"butterflyc {__version__}\n"
    assert subprocess.run([*command, "targets", "none"], capture_output=True).returncode == 2


def test_closed_pipe_is_no_bug() -> None:
    """Output into a reader that has gone ends quietly."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "butterflyc", "targets"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write_end)
    assert done.returncode != 0
    assert "BF999" not in done.stderr
