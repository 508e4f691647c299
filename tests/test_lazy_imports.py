"""The front door opens fast: what needs neither torch nor tvm does not import them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from butterflyc.cli.app import app
from butterflyc.compiler import artefact as bfly
from butterflyc.compiler.artefact import Artefact

HEAVY = ("torch", "tvm", "triton", "networkx", "sklearn", "matplotlib")
CPU_SECONDS = 0.5
MANIFEST = {
    "name": "a",
    "target": "host",
    "mode": "f32",
    "inputs": [],
    "outputs": [],
    "stages": [],
    "memory": {"weights": 8 << 20, "arena": 0},
}
COMMANDS = app.list_commands(app.make_context("butterflyc", ["targets"], resilient_parsing=True))

# Runs one command line, then says what was imported and what it cost, on the last line of stderr.
PROBE = """
import json, os, sys
status = 0
if sys.argv[1:]:
    from butterflyc.cli.app import run
    status = run(sys.argv[1:])
else:
    import butterflyc
times = os.times()
seen = {"status": status, "modules": list(sys.modules), "cpu": times.user + times.system}
print(json.dumps(seen), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lazy") / "a.bfly"
    sections = {"weights.safetensors": bytes(8 << 20)}
    bfly.write(path, Artefact(MANIFEST, sections))
    return path


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--help",
        "--version",
        *(f"{name} --help" for name in COMMANDS),
        "targets",
        "targets host",
        "targets --json",
        "targets none",
        "doctor",
        "doctor --json",
        "inspect ARTEFACT",
        "inspect ARTEFACT --json",
        "inspect ARTEFACT manifest",
    ],
)
def test_command_starts_fast(line: str, artefact: Path) -> None:
    """The command imports nothing heavy, and takes under half a second of one CPU."""
    words = [str(artefact) if word == "ARTEFACT" else word for word in line.split()]
    runs = []
    for _ in range(3):  # the least of three: another process may share the core
        done = subprocess.run(
            [sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=True
        )
        runs.append(json.loads(done.stderr.splitlines()[-1]))
        if runs[-1]["cpu"] < CPU_SECONDS:
            break
    assert runs[0]["status"] == (2 if line == "targets none" else 0), done.stderr
    tops = {name.split(".")[0] for name in runs[0]["modules"]}
    assert not tops.intersection(HEAVY)
    assert min(run["cpu"] for run in runs) < CPU_SECONDS


def test_verify_stays_a_function() -> None:
    """The public function is not hidden by the module of its name, which it comes from."""
    lines = "import butterflyc as bc", "bc.verify", "import butterflyc.verify", "assert callable"
    subprocess.run([sys.executable, "-c", f"{'; '.join(lines)}(bc.verify)"], check=True)
