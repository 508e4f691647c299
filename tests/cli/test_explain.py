"""`compile --explain` and `inspect OUT recognition` say what was found, what not, and why."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from butterflyc.cli import _explain
from butterflyc.cli._output import print_table
from butterflyc.cli.app import run
from butterflyc.compiler.capture.recognise import LayerReport
from butterflyc.compiler.ir import Graph, Node, Type, input_node, make
from butterflyc.explain import Record, ops_of, rewrites

MODEL = """
import torch
from torch import nn
from butterflyc.models.butterfly import ButterflyConfig, ButterflyMoE

class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        gates, chosen = self.router(x).softmax(-1).topk(2)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            weight = torch.where(chosen == number, gates, 0.0).sum(-1, keepdim=True)
            y = y + weight * expert(x)
        return y

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.butterfly = ButterflyMoE(ButterflyConfig(8, 16, experts=3, top_k=2, angle_std=1.0))
        self.dense = Dense()

    def forward(self, x):
        x = x + self.butterfly(x)
        return x + self.dense(x)

class Sort(nn.Module):
    def forward(self, x):
        return torch.linalg.pinv(x)

def make():
    torch.manual_seed(0)
    return Net().eval(), (torch.randn(5, 8),)

def plain(): return nn.Linear(8, 4), (torch.randn(2, 8),)
def refused(): return Sort(), (torch.randn(4, 4),)
"""
PARTS = {"rotation_in", "substrate", "rotation_out", "routing", "down"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with model.py in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


def report(recognised: str, **facts: Any) -> LayerReport:
    values: dict[str, Any] = {
        "path": "mlp", "source": "vit.py:3", "parts": {}, "residual": None, "reason": "",
        "experts_found": 0, "experts": 4, "k": 2,
    }  # fmt: skip
    return LayerReport(recognised=recognised, **(values | facts))


def printed(data: dict[str, Any]) -> str:
    text = io.StringIO()
    _explain.show_explanation(data, text)
    return text.getvalue()


def chain(*ops: str) -> Graph:
    node: Node = input_node("x", Type("f32", (2,)))
    inputs = (node,)
    for number, op in enumerate(ops):
        node = make(op, node, name=f"n{number}")
    return Graph("g", inputs, (node,))


def test_a_model_with_both_kinds_of_layer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The Butterfly layer is told with its evidence, the other with the reason and its line."""
    assert run(["compile", "model.py:make", "-o", "m.bfly", "--explain"]) == 0
    out = capsys.readouterr().out
    assert "2 MoE layers: 1 recognised in full, 0 in part, 1 not; 3 of 7 experts found" in out
    assert re.search(r"^butterfly +full +3 of 3, top-2 +\S+e-1\d +butterfly.py:\d+$", out, re.M)
    assert "dense.topk" in out
    assert "(model.py:13)" in out
    assert "  not recognised  no matrix of the experts is ternary" in out
    assert "  compiled to     the ops it was captured as" in out
    assert "  rotation in   2 layers of 2x2 blocks on 8 channels, Givens rotations" in out
    assert "butterfly_experts 0 -> 1" in out
    assert run(["inspect", "m.bfly", "recognition"]) == 0
    again = capsys.readouterr().out
    assert again in out, "inspect shows the same layers"
    assert run(["inspect", "m.bfly", "recognition", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "butterflyc.inspect.recognition/1"
    found, other = data["layers"]
    assert set(found["parts"]) == PARTS
    assert (found["recognised"], found["experts_found"], found["experts"]) == ("full", 3, 3)
    assert found["residual"] <= 1e-9
    assert found["compiled"]["butterfly_experts"] == 1
    assert (other["recognised"], other["experts_found"], other["experts"]) == ("none", 0, 4)
    assert other["source"] == "model.py:13"
    assert "ternary" in other["reason"]
    assert [row["pass"] for row in data["rewrites"]][:2] == ["recognise", "canonicalize"]


def test_json_of_compile_holds_the_explanation(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json the explanation is part of the one document; without --explain it is not."""
    line = ["compile", "model.py:plain", "-o", "m.bfly", "--json"]
    assert run([*line, "--explain"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["explanation"]["layers"] == []
    assert data["explanation"]["rewrites"]
    assert run([*line, "--force"]) == 0
    assert "explanation" not in json.loads(capsys.readouterr().out)


def test_a_failed_compilation_is_explained(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was recognised stands before the error of a later step; with --json, on stderr."""
    monkeypatch.setenv("CC", "no-such-cc")
    line = ["compile", "model.py:make", "-o", "m.bfly", "--explain"]
    assert run(line) == 7
    out, err = capsys.readouterr()
    assert "3 of 7 experts found" in out
    assert "plan_memory" in out
    assert "error[BF701]" in err
    assert run([*line, "--json"]) == 7
    out, err = capsys.readouterr()
    assert json.loads(out)["schema"] == "butterflyc.error/1"
    assert 0 <= err.index("3 of 7 experts found") < err.index("error[BF701]")


def test_a_model_that_is_not_captured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where capture itself fails, the explanation says that no layer was looked for."""
    assert run(["compile", "model.py:refused", "-o", "m.bfly", "--explain"]) == 3
    assert "compilation ended before recognition" in capsys.readouterr().out


def test_a_model_without_experts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model without routing is told as such."""
    assert run(["compile", "model.py:plain", "-o", "m.bfly", "--explain"]) == 0
    assert "no mixture of experts" in capsys.readouterr().out


def test_partial_layers_and_infinite_residuals() -> None:
    """A flaw is shown as what differs; a residual that is not finite is none in the data."""
    flawed = report("partial", residual=1e-15, reason="the input blocks are no rotations")
    wild = report("none", residual=float("inf"), reason="rebuilt, it differs by inf", source="")
    data = Record(layers=(flawed, wild)).explanation()
    assert [layer["residual"] for layer in data["layers"]] == [1e-15, None]
    json.dumps(data, allow_nan=False)
    text = printed(data)
    assert "  differs  the input blocks are no rotations" in text
    assert "  not recognised  rebuilt, it differs by inf" in text
    assert "mlp (no source line)" in text


def test_rewrites_count_ops() -> None:
    """A pass is told by the counts that changed, and by the ops that are new or other."""
    stages = {"capture": chain("exp", "neg", "neg"), "cancel": chain("exp"), "same": chain("exp")}
    assert rewrites(stages) == [
        {"pass": "cancel", "ops": 1, "changed": 0, "changes": {"neg": [2, 0]}},
        {"pass": "same", "ops": 1, "changed": 0, "changes": {}},
    ]
    text = printed(Record(stages, ()).explanation())
    assert "cancel  1    -        neg 2 -> 0" in text
    noted = chain("exp").outputs[0].with_notes(kernel="pointwise")
    graph = Graph("g", (noted.operands[0],), (noted,))
    assert rewrites({"capture": chain("exp"), "select": graph})[0]["changed"] == 1
    assert ops_of(report("full", path="n0"), graph) == {"exp": 1}
    assert ops_of(report("full", path="n"), graph) == {}
    assert ops_of(report("none", path="n0"), graph) == {}


def test_a_table_on_a_terminal_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long cells are wrapped on a terminal, and brackets are no markup; elsewhere a row is a line.

    A terminal is what FORCE_COLOR says is one.
    """
    rows = [("part", "evidence"), ("down", "dense [32, 64] " + "word " * 40)]
    plain = io.StringIO()
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    print_table(rows, plain)
    assert len(plain.getvalue().splitlines()) == 2
    wrapped = io.StringIO()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    print_table(rows, wrapped, indent="  ", header=False)
    lines = wrapped.getvalue().splitlines()
    assert len(lines) > 3
    assert "dense [32, 64]" in lines[1]
