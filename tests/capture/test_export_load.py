"""Models by name: programs, functions in files, checkpoints; each wrong kind has its own error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.load import load_model
from butterflyc.compiler.errors import ButterflycError, Damaged, UnknownName, UsageError

SOURCE = """
from dataclasses import dataclass
import torch
from width import WIDTH

@dataclass
class Config:
    width: int = WIDTH

def linear():
    return torch.nn.Linear(Config().width, 2), (torch.ones(1, WIDTH),)

def nothing():
    return None

def no_module():
    return 3, ()

def no_tuple():
    return torch.nn.Linear(3, 2), torch.ones(1, 3)

def broken():
    raise RuntimeError("no such data")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "width.py").write_text("WIDTH = 3\n")
    (tmp_path / "model.py").write_text(SOURCE)
    return tmp_path / "model.py"


def test_function(file: Path) -> None:
    """A function of a file gives its module; the file may import its neighbours."""
    model, inputs = load_model(f"{file}:linear")
    assert capture(model, inputs).graph.outputs[0].type.shape == (1, 2)


def test_program(tmp_path: Path) -> None:
    """An exported program brings its own example inputs."""
    program = torch.export.export(nn.Linear(3, 2).eval(), (torch.ones(1, 3),))
    torch.export.save(program, tmp_path / "model.pt2")
    model, inputs = load_model(str(tmp_path / "model.pt2"))
    graph = capture(model, inputs).graph
    assert {"weight", "bias"} <= {node.name for node in graph.nodes}


def test_checkpoint(tmp_path: Path) -> None:
    """A checkpoint is read by the loader that the caller gives."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"")
    model = nn.Linear(3, 2)
    loaded = load_model(str(path), checkpoint_loader=lambda p: (model, (p,)))
    assert loaded == (model, (path,))


@pytest.mark.parametrize(
    ("name", "kind", "what"),
    [
        ("linaer", UnknownName, "nearest: linear"),
        ("nothing", UsageError, "returned a NoneType"),
        ("no_module", UsageError, "returned a int as the module"),
        ("no_tuple", UsageError, "returned a Tensor as the example inputs"),
        ("broken", UsageError, "RuntimeError: no such data\n  at model.py:23"),
    ],
)
def test_wrong_function(file: Path, name: str, kind: type[ButterflycError], what: str) -> None:
    """A function that is not there, fails, or returns something else."""
    with pytest.raises(kind) as caught:
        load_model(f"{file}:{name}")
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("source", "what"),
    [("def f(:\n", "model.py:1"), ("import not_there_at_all\n", "not_there_at_all")],
)
def test_file_that_cannot_be_imported(tmp_path: Path, source: str, what: str) -> None:
    """Errors of the user's file are shown with their line."""
    (tmp_path / "model.py").write_text(source)
    with pytest.raises(UsageError, match="cannot be imported") as caught:
        load_model(f"{tmp_path / 'model.py'}:f")
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model.pt", "file.py:function"),
        ("model.pth", "file.py:function"),
        ("model.onnx", "file.py:function"),
        ("model.bfly", "butterflyc run"),
        ("model.py", "name the function"),
        ("weights.safetensors", "MODEL is"),
        ("model.xyz", "MODEL is"),
    ],
)
def test_wrong_kind(tmp_path: Path, name: str, what: str) -> None:
    """A file of another kind is refused with the way to give it."""
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError) as caught:
        load_model(str(tmp_path / name))
    assert what in str(caught.value.help)


@pytest.mark.parametrize("spec", ["absent.pt2", "absent.py:f"])
def test_absent(tmp_path: Path, spec: str) -> None:
    """A file that is not there is named."""
    with pytest.raises(UsageError, match=r"there is no file .*absent"):
        load_model(str(tmp_path / spec))


def test_folder(tmp_path: Path) -> None:
    """A folder is no model."""
    with pytest.raises(UsageError, match="a folder"):
        load_model(str(tmp_path))


def test_damaged_program(tmp_path: Path) -> None:
    """A program file that torch cannot read is damaged."""
    (tmp_path / "model.pt2").write_bytes(b"nothing of the kind")
    with pytest.raises(Damaged, match="no exported program"):
        load_model(str(tmp_path / "model.pt2"))


def test_program_without_inputs(tmp_path: Path) -> None:
    """A program that was saved without example inputs is refused."""
    program = torch.export.export(nn.Linear(3, 2).eval(), (torch.ones(1, 3),))
    program.example_inputs = None
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(UsageError, match="holds no example inputs"):
        load_model(str(tmp_path / "model.pt2"))


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    """An edit of the same length within the same second is seen; no bytecode is left behind."""
    path = tmp_path / "model.py"
    for value in (1, 2):
        text = f"import torch\ndef make(): return torch.nn.Linear({value}, 3), (torch.ones(1),)\n"
        path.write_text(text)
        module, _ = load_model(f"{path}:make")
        assert module.in_features == value
    assert [file.name for file in tmp_path.iterdir()] == ["model.py"]
