"""`targets`, `doctor` and `inspect` say what is there, to people and to programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from butterflyc import doctor
from butterflyc.cli.app import run
from butterflyc.compiler import artefact as bfly
from butterflyc.compiler.artefact import Artefact

MANIFEST = {
    "name": "digits",
    "target": "host",
    "mode": "f32",
    "inputs": [{"name": "image", "dtype": "f32", "shape": [1, 1, 8, 8]}],
    "outputs": [{"name": "logits", "dtype": "f32", "shape": [1, 10]}],
    "stages": ["capture", "canonicalize"],
    "census": {"found": 32, "choosable": 32},
    "memory": {"weights": 5000, "arena": 1536},
    "tools": {"butterflyc": "0.1.0"},
}
BOARD = """\
name = "my-board"
family = "mcu"
description = "mine"
triple = "t"
cpu = "c"
features = ["m", "c"]
lanes = "scalar"
toolchain = []
runner = "r"
memories = [{ name = "sram", nominal = 409_600, usable = 327_680 }]
"""


def output(capsys: pytest.CaptureFixture[str], *line: object) -> str:
    assert run([str(word) for word in line]) == 0
    return capsys.readouterr().out


def document(capsys: pytest.CaptureFixture[str], *line: object) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(output(capsys, *line))
    return loaded


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    path = tmp_path / "digits.bfly"
    bfly.write(path, Artefact(MANIFEST, {"weights.safetensors": bytes(5000)}))
    return path


def test_targets(capsys: pytest.CaptureFixture[str]) -> None:
    """Each core has its line, and its record in --json."""
    lines = output(capsys, "targets").splitlines()
    data = document(capsys, "targets", "--json")
    assert data["schema"] == "butterflyc.targets/1"
    assert [line.split()[0] for line in lines] == [core["name"] for core in data["targets"]]
    assert any(line.startswith("host ") for line in lines)


def test_one_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One core is shown in full; a board of one's own too."""
    assert "lanes        avx2" in output(capsys, "targets", "x86-64-v3")
    board = tmp_path / "board.toml"
    board.write_text(BOARD)
    text = output(capsys, "targets", "my-board", "--target-file", board)
    assert "memory sram  320.00 KiB usable of 400.00 KiB" in text
    assert "features     m c" in text
    assert "memory psram  4.00 MiB usable of 4.00 MiB, on some boards" in output(
        capsys, "targets", "esp32"
    )
    assert "flash 832.00 KiB, sram 192.00 KiB" in output(capsys, "targets")


def test_doctor(capsys: pytest.CaptureFixture[str], needs_tool: Callable[..., str]) -> None:
    """Packages and programs are listed with their versions, the missing ones too."""
    compiler = needs_tool("cc", "gcc", "clang")
    data = document(capsys, "doctor", "--json")
    packages = {item["name"]: item for item in data["packages"]}
    assert packages["numpy"]["found"]
    assert packages["numpy"]["version"]
    assert data["programs"][0]["path"] == compiler
    text = output(capsys, "doctor")
    for item in [*data["packages"], *data["programs"]]:
        assert item["name"] in text
        assert item["for"] in text


def test_doctor_with_nothing_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing is shown as missing."""
    monkeypatch.setattr(doctor, "PACKAGES", (("no-such-package-of-ours", "nothing"),))
    monkeypatch.setattr(doctor, "PROGRAMS", ((("no-such-program", "nor-this"), "nothing"),))
    data = document(capsys, "doctor", "--json")
    assert not data["packages"][0]["found"]
    assert not data["programs"][0]["found"]
    assert "no-such-program or nor-this  nothing  missing" in output(capsys, "doctor")


def test_doctor_with_programs_that_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that cannot be run, or does not know --version, has no version."""
    for name, text in {
        "broken": "#!/no/such/interpreter\n",
        "silent": "#!/bin/sh\nexit 3\n",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(doctor, "PROGRAMS", ((("broken",), "x"), (("silent",), "y")))
    assert run(["doctor", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [(p["found"], p["version"]) for p in json.loads(out)["programs"]] == [(True, None)] * 2
    assert "broken --version" in err


def test_inspect_summary(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The summary tells in- and outputs, stages, experts, memory and sections."""
    text = output(capsys, "inspect", digits)
    for part in (
        "name      digits",
        "inputs    image f32[1x1x8x8]",
        "stages    capture -> canonicalize",
        "census    choosable 32, found 32",
        "memory    arena 1.50 KiB, weights 4.88 KiB",
        "sections  weights.safetensors 4.88 KiB",
    ):
        assert part in text
    data = document(capsys, "inspect", digits, "--json")
    assert data["schema"] == "butterflyc.inspect.summary/1"
    assert {key: data[key] for key in MANIFEST} == MANIFEST
    assert data["sections"] == {"weights.safetensors": 5000}


def test_inspect_manifest(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest is shown as it is; a folder stands for its only artefact."""
    data = document(capsys, "inspect", digits.parent, "manifest")
    assert data["manifest"]["schema"] == "1.0"
    assert data["manifest"]["name"] == "digits"


def test_inspect_damaged(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged file ends with 6, and the bad section is named."""
    raw = bytearray(digits.read_bytes())
    raw[-1000] ^= 1
    digits.write_bytes(raw)
    assert run(["inspect", str(digits)]) == 6
    assert "section 'weights.safetensors' was changed" in capsys.readouterr().err
