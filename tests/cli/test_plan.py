"""`plan` and `inspect OUT experts`: how many experts fit, and what each takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import butterflyc as bc
from butterflyc.cli.app import run
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.vit import ViT, ViTConfig
from butterflyc.targets.experts import experts_of

SIZES = "--d 16 --ff 32 --layers 1 --heads 2 --image 4 --channels 1 --patch 2 --classes 3"


def plan(*words: str) -> int:
    return run(["plan", *SIZES.split(), *words])


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """The number, how it was found, every memory, and what another expert takes."""
    assert plan("-t", "cortex-a72", "--memory", "200K") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "target   cortex-a72, mode f32"
    assert lines[1].endswith("1 layer, 2 heads, 5 tokens, top-2, L = 2, float W_down")
    most = int(lines[2].split()[1])
    assert f"lowered with {most} experts, which fit, and with {most + 1}, which" in lines[3]
    head, memory = lines[5].split(), lines[6].split()
    assert head[:2] == ["bytes", "usable"]
    assert memory[:2] == ["memory", "204,800"]
    assert lines[8].startswith("one more expert: ")
    assert lines[8].endswith(" B of memory (1 layer)")
    assert lines[9] == "what binds: memory"
    assert lines[10].startswith("the code is estimated high; without any ")


def test_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    """--json has the same, with the sums of each memory."""
    assert plan("-t", "host", "--memory", "200K", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "butterflyc.plan/1"
    (memory,) = data["memories"]
    parts = (memory[key] for key in ("shared", "experts", "activations", "code", "left"))
    assert sum(parts) == memory["usable"] == 200 << 10
    assert (data["checked"], data["binds"], data["advice"]) == (True, ["memory"], {})
    assert data["lowered"] == data["experts"]
    assert data["model"]["mlp"]["down"] == "float"


@pytest.mark.slow
def test_what_was_foretold_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a model that is too large to lower it is said what its figures come from."""
    assert plan("-t", "host", "--memory", "256M") == 0
    assert "checked  no: foretold from the same model lowered with" in capsys.readouterr().out


@pytest.mark.slow
def test_none_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with the status of what does not fit, by how much, and with what would help."""
    assert plan("-t", "esp32", "--flash", "545K", "--advise") == 4
    out, err = capsys.readouterr()
    assert out == ""
    error = err[err.index("error[BF401]") :]
    assert "vit does not fit esp32: flash needs" in error
    assert "too many" in error
    assert "`compile` measures the code, which is estimated high here: without any" in error


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("-t host", "memory of host is not known"),
        ("-t esp32 --memory 4M", "more than one memory"),
        ("-t nowhere", "unknown target 'nowhere'"),
        ("-t host --memory 1G --down none", "unknown kind of W_down 'none'"),
        ("-t host --memory 1G --heads 3", "3 heads do not divide"),
        ("-t host --memory 1G --layers 0", "0 is not in the range"),
        ("", "Missing option"),
    ],
)
def test_usage(words: str, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be asked ends with status 2, and says what is wrong."""
    assert plan(*words.split()) == 2
    assert what in capsys.readouterr().err


def test_help_of_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    """The defaults are the papers' model."""
    assert run(["plan", "--help"]) == 0
    text = capsys.readouterr().out
    config = ViTConfig()
    for name, default in (("--d ", config.d_model), ("--layers", config.layers)):
        assert f"[default: {default}; x>=1]" in text[text.index(name) :].split("\n  --")[0]


@pytest.fixture(scope="module")
def program() -> bc.Program:
    torch.manual_seed(0)
    layer = ButterflyConfig(16, 32, 4, 2, angle_std=1.0, down="ternary")
    shape = ViTConfig(
        image=4, channels=1, patch=2, classes=3, d_model=16, heads=2, layers=2, mlp=layer
    )
    model = ViT(shape).eval()
    return bc.compile(model, (torch.rand(1, 1, 4, 4),), target="esp32c3", name="vit")


@pytest.fixture
def inspected(
    program: bc.Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """``inspected(*words)``: what `inspect OUT experts` prints of the program."""

    def words(*more: str) -> str:
        path = program.save(tmp_path / "vit.bfly")
        assert run(["inspect", str(path), "experts", *more]) == 0
        return capsys.readouterr().out

    return words


def test_bytes_of_experts(program: bc.Program, inspected: Callable[..., str]) -> None:
    """Each layer's weights by what they are; the sums are those of the whole program."""
    found: dict[str, Any] = json.loads(inspected("--json"))["budget"]
    first, second = found["layers"]
    assert [first["path"], second["path"]] == ["blocks.0.mlp", "blocks.1.mlp"]
    # 4 experts of 16 + 32 channels, 4 numbers of 16 bits a channel; 2 bits a ternary weight.
    assert first["bytes"]["angles"] == second["bytes"]["angles"] == 4 * 48 * 4 * 2
    assert first["bytes"]["ternary matrix"] == first["bytes"]["W_down"] == 16 * 32 // 4
    experts, report = experts_of(program.stages["plan_memory"]), program.placement
    assert experts
    assert report
    assert found["one_more"] == experts.weights(5) - experts.weights(4)
    assert found["more_fit"] + 4 <= report["experts"]["would_fit"]
    owned = sum(layer["bytes"][kind] for layer in found["layers"] for kind in ("angles", "router"))
    assert owned == experts.weights(4) - experts.others


def test_a_table_of_experts(inspected: Callable[..., str]) -> None:
    """A row a layer and their sums, what one more takes, and how many more fit."""
    lines = inspected().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("bytes "))
    assert [line.split()[0] for line in lines[start + 1 : start + 4]] == [
        "blocks.0.mlp",
        "blocks.1.mlp",
        "all",
    ]
    assert lines[start + 4].startswith("one more expert in every layer: ")
    assert lines[start + 5].endswith(" more a layer would fit")


def test_where_no_limit_is_known(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A program for a CPU has the bytes of its experts, and nothing that they might not fit."""
    layer = ButterflyConfig(16, 16, 4, 2, angle_std=1.0)
    shape = ViTConfig(
        image=4, channels=1, patch=2, classes=3, d_model=16, heads=2, layers=1, mlp=layer
    )
    path = bc.compile(ViT(shape).eval(), (torch.rand(1, 1, 4, 4),)).save(tmp_path / "vit.bfly")
    assert run(["inspect", str(path), "experts", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["budget"]
    assert found["more_fit"] is None
    assert found["one_more"] > 0
    assert run(["inspect", str(path), "experts"]) == 0
    assert "would fit" not in capsys.readouterr().out
