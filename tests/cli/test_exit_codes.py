"""Every kind of bad input: an error of one shape, the right exit status, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import butterflyc as bc
from butterflyc.cli.app import run
from butterflyc.compiler import artefact as bfly

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, fault=None):
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.fault = fault

    def forward(self, x):
        if self.fault == "ops":
            x = torch.linalg.pinv(x).T
            x = torch.lgamma(x)
        if self.fault == "control" and x.sum() > 0:
            return x
        return self.layer(x).relu()

def make(fault=None):
    torch.manual_seed(0)
    return Net(fault).eval(), (torch.randn(2, 6),)

def ops(): return make("ops")
def control(): return make("control")
def nan():
    model, x = make()
    with torch.no_grad():
        model.layer.weight[1, 2] = float("nan")
    return model, x
def wrong(): return 7
def raises(): raise RuntimeError("no such weights")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with model.py in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small compiled model, as bytes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("compiled") / "m.bfly"
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU()).eval()
    return bc.compile(model, (torch.randn(2, 6),), name="m").save(path).read_bytes()


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("compile model.py:make -t hots -o m.bfly", 2, "unknown target 'hots'"),
        ("compile model.py:make -m int3 -o m.bfly", 2, "no mode 'int3'"),
        ("compile model.py:make --name 9x -o m.bfly", 2, "cannot be the name"),
        ("compile nothing.py:make -o m.bfly", 2, "nothing.py"),
        ("compile model.py:none -o m.bfly", 2, "none"),
        ("compile model.py:wrong -o m.bfly", 2, ""),
        ("compile model.py:raises -o m.bfly", 2, "no such weights"),
        ("compile model.py:nan -o m.bfly", 2, "layer.weight"),
        ("compile model.py:ops -o m.bfly", 3, "pinv"),
        ("compile model.py:control -o m.bfly", 3, "model.py"),
        ("compile model.py:make -o missing/m.bfly", 7, "cannot write"),
        ("compile model.py:make --calibrate no.npz -o m.bfly", 2, "no.npz"),
        ("compile model.py:make --target-file no.toml -t x -o m.bfly", 2, "no.toml"),
        ("compile model.py:make -t esp32 --sram 9G -o m.bfly", 2, "'9G' is no size for sram"),
        ("compile model.py:make -t esp32c3 --psram 8M -o m.bfly", 2, "no interface for PSRAM"),
        ("compile model.py:make --flash 8M -o m.bfly", 2, "host has no flash to size"),
        ("compile model.py:make -t esp32 --sram 1K -o m.bfly", 4, "does not fit esp32"),
        ("verify none.bfly", 2, "none.bfly"),
        ("run none.bfly --inputs x.npz --out y.npz", 2, "none.bfly"),
        ("inspect model.py", 6, "no butterflyc artefact"),
    ],
)
def test_bad_requests(
    folder: Path, capsys: pytest.CaptureFixture[str], line: str, status: int, message: str
) -> None:
    """A wrong request ends with its status, says what is wrong, and leaves no output."""
    assert run(line.split()) == status
    printed = capsys.readouterr().err
    assert "error[BF" in printed
    assert message in printed
    assert "internal error" not in printed
    assert "help:" in printed or status == 6
    assert not list(folder.glob("**/*.bfly*"))


def test_all_unsupported_ops_are_listed_with_their_lines(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One error names every op that is not covered, and where it is used."""
    assert run(["compile", "model.py:ops", "-o", "m.bfly", "--json"]) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    text = json.dumps(error)
    assert "pinv" in text
    assert "lgamma" in text
    assert "model.py:13" in text
    assert "model.py:14" in text


def test_a_missing_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C compiler compiling ends with 7 and writes nothing."""
    monkeypatch.setenv("CC", "no-such-cc")
    assert run(["compile", "model.py:make", "-o", "m.bfly"]) == 7
    assert not list(folder.glob("*.bfly"))


def test_the_ir_so_far_is_left_when_a_step_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--dump-ir has the stages up to the failure."""
    monkeypatch.setenv("CC", "no-such-cc")
    assert run(["compile", "model.py:make", "-o", "m.bfly", "--dump-ir", "ir"]) == 7
    names = sorted(path.name for path in (folder / "ir").iterdir())
    assert names[0] == "00-capture.bfir"
    assert any(name.endswith("plan_memory.bfir") for name in names)


def test_an_existing_output_is_kept_unless_forced(folder: Path) -> None:
    """compile overwrites only with --force."""
    (folder / "m.bfly").write_text("mine")
    assert run(["compile", "model.py:make", "-o", "m.bfly"]) == 2
    assert (folder / "m.bfly").read_text() == "mine"
    assert run(["compile", "model.py:make", "-o", "m.bfly", "--force"]) == 0
    assert run(["verify", "m.bfly"]) == 0


def damage(content: bytes, kind: str) -> bytes:
    if kind == "cut":
        return content[: len(content) // 2]
    if kind == "empty":
        return b""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("kind", ["cut", "empty", "flip"])
@pytest.mark.parametrize("command", ["verify", "inspect", "run"])
def test_damaged_artefacts_are_refused_everywhere(
    folder: Path,
    compiled: bytes,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    command: str,
) -> None:
    """Every command that reads an artefact ends with 6 on a damaged one."""
    (folder / "m.bfly").write_bytes(damage(compiled, kind))
    np.savez(folder / "x.npz", x=np.zeros((2, 6), np.float32))
    more = ["--inputs", "x.npz", "--out", "y.npz"] if command == "run" else []
    assert run([command, "m.bfly", *more]) == 6
    assert "is damaged" in capsys.readouterr().err
    assert not (folder / "y.npz").exists()


def test_a_newer_schema_is_refused(
    folder: Path, compiled: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artefact of a later version ends with 6 and says to upgrade."""
    (folder / "old.bfly").write_bytes(compiled)
    found = bfly.read(folder / "old.bfly")
    with monkeypatch.context() as patch:
        patch.setattr(bfly, "SCHEMA", (9, 0))
        bfly.write(folder / "new.bfly", found)
    assert run(["inspect", "new.bfly"]) == 6


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 5), np.float32), "compiled for [2, 6]"),
        (np.zeros((3, 6), np.float32), "compiled for [2, 6]"),
        (np.zeros((2, 6)), "the model wants float32"),
        (np.zeros((0, 6), np.float32), "compiled for [2, 6]"),
    ],
)
def test_inputs_that_do_not_fit(
    folder: Path,
    compiled: bytes,
    capsys: pytest.CaptureFixture[str],
    array: np.ndarray,
    message: str,
) -> None:
    """run refuses arrays of another shape or dtype and says which it wants."""
    (folder / "m.bfly").write_bytes(compiled)
    np.savez(folder / "x.npz", x=array)
    assert run(["run", "m.bfly", "--inputs", "x.npz", "--out", "y.npz"]) == 2
    assert message in capsys.readouterr().err


def test_inputs_without_pickles(folder: Path, compiled: bytes) -> None:
    """An .npz with pickled objects is refused, not loaded."""
    (folder / "m.bfly").write_bytes(compiled)
    np.savez(folder / "x.npz", x=np.array([{"a": 1}], dtype=object))
    assert run(["run", "m.bfly", "--inputs", "x.npz", "--out", "y.npz"]) == 2


def test_run_verify_and_inspect_work_on_what_compile_wrote(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole tour: a folder for C, run on a larger batch, verify in three ways, every view."""
    assert run(["compile", "model.py:make", "-o", "out", "--name", "net", "--keep-stages"]) == 0
    assert {"net.bfly", "libnet.so", "net.h", "net.c"} <= {
        p.name for p in (folder / "out").iterdir()
    }
    np.savez(folder / "x.npz", x=np.ones((8, 6), np.float32))
    assert run(["run", "out", "--inputs", "x.npz", "--out", "y.npz"]) == 0
    assert next(iter(np.load("y.npz").values())).shape == (8, 4)
    assert run(["verify", "out"]) == 0
    assert run(["verify", "out", "--bisect"]) == 0
    capsys.readouterr()
    line = "verify out --against model.py:make --inputs x.npz --bisect --json"
    assert run(line.split()) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pass"]
    assert found["samples"] == 4
    assert {"top1_agreement", "routing_agreement", "max_abs", "max_rel", "bit_identical"} <= set(
        found
    )
    assert [stage["stage"] for stage in found["stages"]][:2] == ["recognise", "canonicalize"]
    for view in ("summary", "ir", "memory", "kernels", "experts", "recognition", "manifest"):
        assert run(["inspect", "out", view]) == 0
        capsys.readouterr()
        assert run(["inspect", "out", view, "--json"]) == 0
        json.loads(capsys.readouterr().out)
    assert run(["inspect", "out", "ir", "--stage", "capture"]) == 0
    assert "graph net(" in capsys.readouterr().out
    assert run(["inspect", "out", "ir", "--diff", "capture", "plan_memory"]) == 0
    capsys.readouterr()
    assert run(["inspect", "out", "ir", "--stage", "fuse_experts", "--dot"]) == 0
    assert capsys.readouterr().out.startswith('digraph "net"')
    assert run(["inspect", "out", "ir", "--stage", "none"]) == 2
    assert run(["inspect", "out", "memory", "--stage", "capture"]) == 2


def test_a_board_and_what_goes_where(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The memories given are those used, in what is printed, written, inspected and recorded."""
    line = "compile model.py:make -t esp32 --sram 2K --psram 2M --flash 2M --partition 1M -o out"
    assert run(line.split()) == 0
    text = capsys.readouterr().out
    assert "flash" in text
    assert "sram    " in text
    assert {"report.json", "report.md"} <= {path.name for path in (folder / "out").iterdir()}
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["memory"]["sram"]["usable"] == 2048
    assert report["memory"]["psram"]["nominal"] == 2 << 20
    assert report["memory"]["flash"]["usable"] == 512 << 10
    assert run(["inspect", "out", "memory", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["placement"] == report
    assert run(["inspect", "out", "manifest"]) == 0
    core = json.loads(capsys.readouterr().out)["manifest"]["core"]
    assert {"name": "flash", "partition": 1 << 20}.items() <= core["memories"][0].items()
    assert run(["inspect", "out", "memory"]) == 0
    assert "weights by kind" in capsys.readouterr().out


def test_a_model_that_changed_fails_verification(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """verify --against another model ends with 5 and says by how much it differs."""
    assert run(["compile", "model.py:make", "-o", "m.bfly"]) == 0
    (folder / "model.py").write_text(MODEL.replace("manual_seed(0)", "manual_seed(1)"))
    assert run(["verify", "m.bfly", "--against", "model.py:make"]) == 5
    printed = capsys.readouterr().err
    assert "error[BF501]" in printed
    assert "allowed" in printed


def test_bisect_without_stages_says_what_is_missing(folder: Path, compiled: bytes) -> None:
    """--bisect alone needs an artefact that keeps its stages."""
    (folder / "m.bfly").write_bytes(compiled)
    assert run(["verify", "m.bfly", "--bisect"]) == 2
