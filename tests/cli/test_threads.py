"""`--threads` from the command line, and what the commands make of such an artefact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from butterflyc.cli.app import run

MODEL = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    layers = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4), nn.LayerNorm(4)
    return nn.Sequential(*layers).eval(), (torch.rand(7, 8),)
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "small.py").write_text(MODEL)
    return f"{tmp_path}/small.py:model"


def test_from_compile_to_run(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """compile says how many threads there are; inspect, verify and run go on from there."""
    words = ["compile", source, "--name", "small", "-o"]
    assert run([*words, str(tmp_path / "one")]) == 0
    assert "threads" not in capsys.readouterr().out
    assert run([*words, str(tmp_path / "two"), "--threads", "2"]) == 0
    assert "threads  2, in an arena of" in capsys.readouterr().out
    assert (tmp_path / "two" / "small_pool.c").is_file()
    assert not (tmp_path / "one" / "small_pool.c").exists()
    assert run(["verify", str(tmp_path / "two"), "--against", source, "--bisect"]) == 0
    capsys.readouterr()
    assert run(["inspect", str(tmp_path / "two"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["threads"] == 2
    assert data["memory"]["arena_mt"] >= data["memory"]["arena"]
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((7, 8), np.float32))
    results = []
    for folder in ("one", "two"):
        inputs, out = f"{tmp_path}/x.npz", f"{tmp_path}/{folder}.npz"
        assert run(["run", f"{tmp_path}/{folder}", "--inputs", inputs, "--out", out]) == 0
        results.append([array.tobytes() for array in np.load(out).values()])
    assert results[0] == results[1]


@pytest.mark.parametrize("count", ["0", "-1", "65", "many"])
def test_a_number_of_threads_that_there_cannot_be(count: str, source: str, tmp_path: Path) -> None:
    """Usage errors, before anything is compiled."""
    assert run(["compile", source, "-o", str(tmp_path / "out"), "--threads", count]) == 2
    assert not (tmp_path / "out").exists()
