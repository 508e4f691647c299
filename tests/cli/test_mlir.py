"""`inspect MODEL --mlir`: torch-mlir's view, from a process that may crash, hang or be refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from butterflyc import mlir
from butterflyc.cli.app import run
from butterflyc.compiler.errors import (
    ButterflycError,
    ToolFailed,
    ToolMissing,
    Unsupported,
    UsageError,
)

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.register_buffer("scale", torch.rand(4), persistent=False)

    def forward(self, x):
        return self.layer(x).relu() * self.scale

class Sorted(nn.Module):
    def forward(self, x):
        return torch.sort(x, descending=True, stable=True)[1]

class Marked(Net):
    def forward(self, x):
        import butterflyc
        return butterflyc.mark(super().forward(x))

def marked(): return Marked().eval(), (torch.randn(2, 6),)

def make():
    print("a model that prints")
    return Net().eval(), (torch.randn(2, 6),)

def sorts(): return Sorted(), (torch.randn(2, 6),)
def wrong(): return 7
"""
# Runs as the child in place of our own: MODEL is a line of Python, with the answer's path at hand.
STAND_IN = """
import json, os, pathlib, signal, sys, time
code, dialect, answer = sys.argv[1:]
exec(code, {**globals(), "say": lambda **data: pathlib.Path(answer).write_text(json.dumps(data))})
"""

needs_torch_mlir = pytest.mark.skipif(
    find_spec("torch_mlir") is None, reason='torch-mlir is missing: pip install "butterflyc[mlir]"'
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with model.py in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


def stand_in(code: str, dialect: str = "torch", seconds: float = 60) -> str:
    return mlir.view(code, dialect, seconds, child=[sys.executable, "-c", STAND_IN])


def failure(code: str, dialect: str = "torch", seconds: float = 60) -> ButterflycError:
    with pytest.raises(ButterflycError) as caught:
        stand_in(code, dialect, seconds)
    return caught.value


@needs_torch_mlir
@pytest.mark.parametrize(
    ("option", "part"),
    [
        ("--mlir", "torch.aten.relu"),
        ("--mlir=raw", "torch.aten.relu"),
        ("--mlir=linalg", "linalg.matmul"),
    ],
)
def test_a_model_in_each_dialect(
    folder: Path, capsys: pytest.CaptureFixture[str], option: str, part: str
) -> None:
    """A model is shown in the dialect, weights by name only, without what it prints itself."""
    assert run(["inspect", "model.py:make", option]) == 0
    text = capsys.readouterr().out
    assert text.startswith(("module {", "#map"))
    assert "func.func @main" in text
    assert part in text
    assert "dialect_resources" not in text
    assert "a model that prints" not in text


@needs_torch_mlir
def test_marks_are_not_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mark, which only recognition can judge, is nothing to torch-mlir."""
    assert run(["inspect", "model.py:marked", "--mlir=linalg"]) == 0
    assert "butterflyc" not in capsys.readouterr().out


@needs_torch_mlir
def test_json_names_model_and_dialect(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json the view is one document."""
    assert run(["inspect", "model.py:make", "--mlir", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "butterflyc.inspect.mlir/1"
    assert (data["model"], data["dialect"]) == ("model.py:make", "torch")
    assert "torch.aten" in data["text"]


@needs_torch_mlir
def test_what_torch_mlir_refuses_is_told_in_its_words(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An op that torch-mlir cannot lower ends with 3, its message and the model's line."""
    assert run(["inspect", "model.py:sorts", "--mlir"]) == 3
    err = capsys.readouterr().err
    assert "failed to legalize operation 'torch.operator'" in err
    assert "  at model.py:16" in err
    assert run(["inspect", "model.py:sorts", "--mlir=raw"]) == 0


@needs_torch_mlir
def test_errors_of_ours_come_through(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong MODEL is the same error as for compile."""
    assert run(["inspect", "model.py:wrong", "--mlir"]) == 2
    assert "returned a int" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "command"), [("torch_mlir", "butterflyc[mlir]"), ("torch", "butterflyc[compile]")]
)
def test_a_missing_package_is_told_by_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    missing: str,
    command: str,
) -> None:
    """Without torch-mlir or PyTorch the command ends with 7 and one line to run."""
    monkeypatch.setattr(mlir, "find_spec", lambda name: None if name == missing else "there")
    assert run(["inspect", "model.py:make", "--mlir"]) == 7
    assert f'help: pip install "{command}"' in capsys.readouterr().err
    with pytest.raises(ToolMissing):
        mlir.view("model.py:make")


@pytest.mark.parametrize(
    ("name", "advice"),
    [("SIGSEGV", "a fault of torch-mlir"), ("SIGKILL", "memory ran out"), ("SIGABRT", "memory")],
)
def test_a_crash_is_told_with_its_signal(name: str, advice: str) -> None:
    """A child that dies of a signal is told by its name, its last words, and what to do."""
    number = getattr(signal, name).value
    code = f"print('last words', file=sys.stderr, flush=True); os.kill(os.getpid(), {number})"
    error = failure(code)
    assert isinstance(error, ToolFailed)
    assert error.exit_status == 7
    assert error.what == f"torch-mlir crashed with {name}\n  | last words"
    assert advice in (error.help or "")
    assert "--mlir=raw" in (error.help or "")
    assert "--mlir=raw" not in (failure(code, "raw").help or "")


def test_a_signal_without_a_name() -> None:
    """A real-time signal is told by its number."""
    assert "signal 40" in failure("os.kill(os.getpid(), 40)").what


def test_a_child_that_hangs_is_stopped() -> None:
    """After the time limit the child is ended, and the error says how to give it more."""
    error = failure("time.sleep(60)", seconds=0.5)
    assert isinstance(error, ToolFailed)
    assert "stopped after 0.5 s" in error.what
    assert "--time-limit" in (error.help or "")
    with pytest.raises(UsageError, match="time limit"):
        stand_in("pass", seconds=0)


@pytest.mark.parametrize("code", ["sys.exit(3)", "pass"])
def test_a_child_without_an_answer(code: str) -> None:
    """A child that ends by itself and says nothing is a failure of the tool."""
    error = failure(code)
    assert isinstance(error, ToolFailed)
    assert "ended with status" in error.what


def test_answers() -> None:
    """A text comes back as it is; errors come back as the class that was raised."""
    assert stand_in("say(text='module {}')") == "module {}"
    data = UsageError("no such file", where="a.py:1", help="look again").as_dict()
    error = failure(f"say(error={data})")
    assert type(error) is UsageError
    assert error.as_dict() == data


def test_diagnostics_are_shortened_and_placed() -> None:
    """Many diagnostics become six lines with files' names; without any, the exception is told."""
    line = 'loc(callsite("/home/me/vit.py":7:0 at "/x/b.py":9:0)): error: no such op'
    error = failure(f"[print({line!r}, file=sys.stderr) for _ in range(8)]; say(refused='E: x')")
    assert isinstance(error, Unsupported)
    assert error.what.splitlines()[1:] == ["  vit.py:7: no such op"] * 6 + ["  and 2 more"]
    assert error.where == "vit.py:7"
    error = failure("say(refused='TypeError: not that')")
    assert error.what.splitlines()[1:] == ["  TypeError: not that"]
    assert error.where is None


def test_the_front_imports_neither_torch_nor_torch_mlir() -> None:
    """The process that a person starts stays without torch-mlir and torch, which the child has."""
    code = (
        "import sys; from butterflyc.cli.app import run; import butterflyc.mlir as m;"
        "m.find_spec = lambda name: 'there';"
        "run(['inspect', 'no-such-file.py:make', '--mlir', '--time-limit', '120']);"
        "print(sorted({'torch', 'torch_mlir', 'tvm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert "there is no file 'no-such-file.py'" in done.stderr
