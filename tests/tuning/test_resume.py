"""Tuners as processes: killed, started twice, interrupted, they lose and repeat nothing."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .small import ONE_LAYER, rows

DENSE = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Linear(32, 16).eval(), (torch.rand(4, 32),)
"""
PATIENCE = 240.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tune.sqlite"


def started(path: Path, model: str, *options: str, budget: int = 3) -> subprocess.Popen[str]:
    words = ["tune", model, "--budget", str(budget), "--database", str(path), *options]
    return subprocess.Popen(
        [sys.executable, "-m", "butterflyc", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Tests that a shell has started in the background ignore ^C, and would pass that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def count(path: Path) -> int:
    """How many trials there are, looked at from outside."""
    if not path.is_file():
        return 0
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return int(connection.execute("SELECT COUNT(*) FROM trials").fetchone()[0])
    except sqlite3.OperationalError:  # it is just being made
        return 0
    finally:
        connection.close()


def wait_for(path: Path, least: int, tuner: subprocess.Popen[str]) -> None:
    """Until there are so many trials."""
    end = time.monotonic() + PATIENCE
    while count(path) < least:
        assert tuner.poll() is None, tuner.communicate()[1]
        assert time.monotonic() < end, "no trials in all that time"
        time.sleep(0.02)


def document(tuner: subprocess.Popen[str]) -> dict[str, Any]:
    """What it says in the end, as ``--json``."""
    out, err = tuner.communicate(timeout=PATIENCE)
    assert tuner.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def earlier(said: dict[str, Any]) -> int:
    return sum(kernel["earlier"] for kernel in said["kernels"])


def check_whole(path: Path) -> None:
    """SQLite finds nothing wrong, and no way was tried twice."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    keys = [row[1:10] for row in rows(path)]
    assert len(set(keys)) == len(keys)


@pytest.mark.slow
def test_a_killed_tuner_goes_on(path: Path) -> None:
    """The same command measures what is missing, and leaves what is there as it is."""
    tuner = started(path, ONE_LAYER)
    wait_for(path, 3, tuner)
    tuner.send_signal(signal.SIGKILL)
    tuner.communicate()
    before = rows(path)
    said = document(started(path, ONE_LAYER, "--json"))
    after = rows(path)
    assert after[: len(before)] == before
    assert earlier(said) == len(before) >= 3
    assert said["new_trials"] == len(after) - len(before) > 0
    assert [kernel["trials"] for kernel in said["kernels"]] == [
        min(3, kernel["ways"]) for kernel in said["kernels"]
    ]
    check_whole(path)
    again = document(started(path, ONE_LAYER, "--json"))
    assert (again["new_trials"], rows(path)) == (0, after)


@pytest.mark.slow
def test_two_tuners_share_their_work(path: Path) -> None:
    """At once on one file each trial is one's own or the other's, and none is lost."""
    both = [started(path, ONE_LAYER, "--json") for _ in range(2)]
    said = [document(tuner) for tuner in both]
    assert sum(each["new_trials"] for each in said) == len(rows(path))
    for each in said:
        assert all(kernel["gain"] for kernel in each["kernels"])
        assert each["new_trials"] + earlier(each) == sum(k["trials"] for k in each["kernels"])
    check_whole(path)


@pytest.mark.slow
def test_an_interrupted_tuner_says_what_it_found(path: Path, tmp_path: Path) -> None:
    """^C ends with 130, and with the table; what was measured is there."""
    (tmp_path / "dense.py").write_text(DENSE)
    tuner = started(path, f"{tmp_path}/dense.py:make", budget=90)
    wait_for(path, 2, tuner)
    tuner.send_signal(signal.SIGINT)
    out, err = tuner.communicate(timeout=PATIENCE)
    assert tuner.returncode == 130, err
    assert out.startswith("kernel")
    assert "linear 4x32 -> 4x16" in out
    assert "interrupted; the same command goes on" in out
    assert f"{len(rows(path))} trials in" in out
    assert "Traceback" not in err
