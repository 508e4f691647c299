"""What models take: tensors anywhere in the arguments are inputs, all else is fixed."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from butterflyc.compiler.capture.arguments import Arguments
from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.load import load_model
from butterflyc.compiler.errors import BadInput
from butterflyc.compiler.ir.graph import Graph
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.source import eager, open_model

from .agreement import data

Pair = namedtuple("Pair", "first second")
X, Y, Z = (data(2, 4, seed=seed) for seed in range(3))


class Many(nn.Module):
    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, scale: float = 2.0, bias: Any = None
    ) -> Tensor:
        y = x * scale
        y = y if mask is None else y * mask
        return y if bias is None else y + bias


class Pieces(nn.Module):
    def forward(self, parts: Any, key: Any, mode: str = "sum") -> Tensor:
        a, b = parts[key[0]], parts[key[1]]
        return a + 2 * b if mode == "sum" else a - b


class Free(nn.Module):
    def forward(self, *parts: Tensor, **named: Tensor) -> Tensor:
        return parts[0] + 10 * named["b"] + 100 * named["a"]


class Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(data(3))

    def forward(self) -> Tensor:
        return self.weight * 2


KINDS: list[tuple[str, nn.Module, Any, list[str]]] = [
    ("defaults", Many(), (X,), ["x"]),
    ("None by place", Many(), (X, None), ["x"]),
    ("optional, given", Many(), (X, Y), ["x", "mask"]),
    ("by name", Many(), {"x": X, "bias": Y, "scale": 3.0}, ["x", "bias"]),
    ("by name, in another order", Many(), {"bias": Y, "mask": Z, "x": X}, ["bias", "mask", "x"]),
    ("by place and name", Many(), Arguments((X,), {"bias": Y, "scale": 3}), ["x", "bias"]),
    ("list", Pieces(), ([X, Y], (0, 1)), ["parts_0", "parts_1"]),
    ("tuple, text", Pieces(), ((X, Y), (1, 0), "other"), ["parts_0", "parts_1"]),
    ("dict", Pieces(), ({"b": X, "a": Y}, ("a", "b")), ["parts_b", "parts_a"]),
    ("named tuple", Pieces(), (Pair(X, Y), (0, 1)), ["parts_first", "parts_second"]),
    ("as many as wanted", Free(), Arguments((X,), {"b": Y, "a": Z}), ["parts_0", "b", "a"]),
    ("one tensor twice", Many(), (X, X), ["x", "mask"]),
    ("none", Nothing(), (), []),
    ("a bool", Many(), {"x": X, "scale": True}, ["x"]),
    ("turned round", Many(), (torch._neg_view(X), Y.t().contiguous().t()), ["x", "mask"]),
    ("with gradients", Many(), (X.clone().requires_grad_(), nn.Parameter(Y)), ["x", "mask"]),
]
EACH = [pytest.param(*kind[1:], id=kind[0]) for kind in KINDS]


def check(model: nn.Module, examples: Arguments, graph: Graph, names: list[str]) -> None:
    assert [node.name for node in graph.inputs] == names
    arrays = [np.full((2, 4), 2.0 + i, np.float32) for i in range(len(names))]
    (wanted,) = eager(model, arrays, examples)
    (got,) = interpret(graph, *arrays)
    assert np.allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize(("model", "given", "names"), EACH)
def test_arguments(model: nn.Module, given: Any, names: list[str]) -> None:
    """Tensors are the inputs in the order given; the rest is what it was in the example."""
    check(model, Arguments.of(given), capture(model, given).graph, names)


# torch saves no named tuples, and takes a tensor that is given twice for one input.
SAVED = [e for e in EACH if e.id not in ("named tuple", "one tensor twice")]


@pytest.mark.parametrize(("model", "given", "names"), SAVED)
def test_arguments_of_a_saved_program(
    model: nn.Module, given: Any, names: list[str], tmp_path: Path
) -> None:
    """A program that was saved brings its arguments with it, and so does one in hand."""
    examples = Arguments.of(given)
    program = torch.export.export(model, examples.places, dict(examples.names))
    torch.export.save(program, tmp_path / "model.pt2")
    check(model, examples, capture(*load_model(str(tmp_path / "model.pt2"))).graph, names)
    source = open_model(program)
    check(model, examples, capture(source.module, source.examples).graph, names)


def test_arguments_by_name_from_a_file(tmp_path: Path) -> None:
    """A function of a file may return its example inputs as a dict."""
    text = "import torch\ndef make(): return torch.nn.Linear(4, 2), {'input': torch.ones(1, 4)}\n"
    (tmp_path / "model.py").write_text(text)
    graph = capture(*load_model(f"{tmp_path / 'model.py'}:make")).graph
    assert [node.name for node in graph.inputs] == ["input"]


@dataclass
class Bundle:
    first: Tensor


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ((slice(3),), "example input 0 is a slice, not a torch.Tensor"),
        (([X, np.zeros(3)],), r"example input 0\[1\] is a ndarray"),
        ({"x": X, "mask": {"a": (3j,)}}, r"example input 'mask'\['a'\]\[0\] is a complex"),
        ((Bundle(X),), "example input 0 is a Bundle"),
        ((X.to_sparse(),), "is torch.sparse_coo"),
        ((torch.nested.as_nested_tensor([X, Y], layout=torch.jagged),), "is nested"),
        ((X.to("meta"),), "is on the meta device, which holds no values"),
        ((X[:0],), r"of shape \[0, 4\] holds no element"),
        ((X.double(),), "is torch.float64"),
        ((torch.complex(X, X),), "is torch.complex64"),
    ],
)
def test_other_arguments_are_refused(given: Any, what: str) -> None:
    """What can be no input is named by its place, with the way out."""
    with pytest.raises(BadInput, match=what) as caught:
        capture(Many(), given)
    assert caught.value.help


def test_the_model_fails_on_other_inputs() -> None:
    """An error of the model is one of the inputs that it was given."""
    with pytest.raises(BadInput, match=r"fails on inputs torch.float32\[3\]: RuntimeError"):
        eager(nn.Linear(4, 4), (np.zeros(3, np.float32),))


def test_a_model_that_export_takes_and_torch_does_not() -> None:
    """A model that PyTorch cannot run is refused, though torch.export takes it."""
    with pytest.raises(BadInput, match="fails on its example inputs") as caught:
        capture(nn.Linear(4, 4), (torch.ones(2, 4, dtype=torch.int64),))
    assert "RuntimeError: " in str(caught.value)
