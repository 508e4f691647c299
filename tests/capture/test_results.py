"""What models return: any structure of tensors and numbers is a row of named results."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.results import forward_of
from butterflyc.compiler.errors import Unsupported
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.source import eager

from .agreement import Function, agree, data

Pair = namedtuple("Pair", "hidden logits")
Case = Callable[[Tensor], Any]


class Typed(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None
    loss: float = 0.0


class Named(OrderedDict[str, Any]):
    """As transformers' ModelOutput is where it is not registered: a dict of another class."""


class Rows(list[Tensor]):
    """A list that torch takes for one value."""


@dataclass
class Registered:
    logits: Tensor
    hidden: Tensor | None = None


torch.export.register_dataclass(Registered)


def defaults(x: Tensor) -> Any:
    found = defaultdict(list)
    found["y"] = [x * 2]
    found["z"] = [x + 1]
    return found


ROW = torch.tensor([1.0, 2.0, 3.0, 4.0])
KINDS: list[tuple[str, Case, tuple[str, ...]]] = [
    ("one tensor", lambda x: x * 2, ("mul",)),
    ("tuple", lambda x: (x * 2, x + 1), ("mul", "add")),
    ("list", lambda x: [x * 2], ("mul",)),
    ("namedtuple", lambda x: Pair(x * 2, x + 1), ("hidden", "logits")),
    ("NamedTuple", lambda x: Typed(x * 2, x + 1), ("first", "second")),
    ("named tuple of torch", lambda x: x.topk(2), ("values", "indices")),
    ("dict", lambda x: {"b": x * 2, "a": x + 1}, ("b", "a")),
    ("dict by numbers", lambda x: {7: x * 2, 3: x + 1}, ("mul", "add")),
    ("dict by tuples", lambda x: {(0, 1): x * 2}, ("mul",)),
    ("OrderedDict", lambda x: OrderedDict(b=x * 2, a=x + 1), ("b", "a")),
    ("defaultdict", defaults, ("y.0", "z.0")),
    ("dict of another class", lambda x: Named(b=x * 2, a=x + 1), ("b", "a")),
    ("list of another class", lambda x: (x * 2, Rows([x + 1])), ("mul", "add")),
    ("dataclass", lambda x: Output(x * 2), ("logits", "loss")),
    ("registered dataclass", lambda x: Registered(x * 2, x + 1), ("logits", "hidden")),
    ("None and text", lambda x: (x * 2, None, "text", x + 1), ("mul", "add")),
    ("numbers", lambda x: (x * 2, 3, 0.5, True), ("mul", "number", "number_2", "number_3")),
    ("a size", lambda x: (x * 2, x.shape[0]), ("mul", "number")),
    ("numbers alone", lambda x: 3, ("number",)),
    ("nested", lambda x: (x, [x + 1, {"k": (x * 2, None)}]), ("0", "1.0", "1.1.k.0")),
    ("odd names", lambda x: {"a b": x * 2, "a_b": x + 1}, ("a_b", "a_b_2")),
    ("empty parts", lambda x: ((), x * 2, {}), ("mul",)),
    ("NumPy", lambda x: x.numpy(), ("inputs_0",)),
    ("a number of NumPy", lambda x: (x * 2, np.float32(0.5)), ("mul", "lift_fresh_copy")),
    ("a number of the data", lambda x: (x * 2, x.sum().item()), ("mul", "sum")),
    ("an input", lambda x: (x, x * 2), ("inputs_0", "mul")),
    ("one tensor twice", lambda x: (lambda y: (y, y))(x * 2), ("mul", "mul_2")),
    (
        "views of a result",
        lambda x: (lambda y: (y, y.view(-1), y.t()))(x * 2),
        ("mul", "view", "t"),
    ),
    ("a constant", lambda x: (x * 2, ROW), ("mul", "lifted_tensor_0")),
    ("no axes", lambda x: x.sum(), ("sum",)),
]


@pytest.mark.parametrize(("function", "names"), [pytest.param(*k[1:], id=k[0]) for k in KINDS])
def test_results(function: Case, names: tuple[str, ...]) -> None:
    """The results are those of the model, from front to back, under the names that it gives."""
    assert agree(Function(function), data(2, 4)).graph.results == names


# Those that torch itself exports.
EXPORTED = [k for k in KINDS if k[0] in ("namedtuple", "dict", "registered dataclass", "nested")]
EXPORTED += [k for k in KINDS if k[0] in ("numbers", "None and text", "defaultdict", "an input")]


@pytest.mark.parametrize(("function", "names"), [pytest.param(*k[1:], id=k[0]) for k in EXPORTED])
def test_results_of_an_exported_program(function: Case, names: tuple[str, ...]) -> None:
    """A program that torch.export made has the same results under the same names."""
    x = data(2, 4)
    program = torch.export.export(Function(function), (x,))
    graph = capture(program, (x,)).graph
    assert graph.results == names
    wanted = eager(program, (x.numpy(),))
    for mine, theirs in zip(interpret(graph, x.numpy()), wanted, strict=True):
        assert mine.dtype == theirs.dtype
        assert np.allclose(mine, theirs, rtol=1e-6)


def test_results_of_a_program_of_any_batch() -> None:
    """A program that was exported for any batch size keeps the names of its results."""
    batch = {0: torch.export.Dim("batch", min=1)}
    module = Function(lambda x: {"y": x * 2, "rows": (x.shape[0], None)})
    program = torch.export.export(module, (data(2, 4),), dynamic_shapes=((batch,),))
    graph = capture(program, (data(3, 4),)).graph
    assert graph.results == ("y", "rows.0")
    assert interpret(graph, data(3, 4).numpy())[1] == 3


class Returns(nn.Module):
    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Any:  # forward
        return self.what


LINE = next(n for n, t in enumerate(Path(__file__).read_text().splitlines(), 1) if "# forward" in t)


@pytest.mark.parametrize("what", [None, "text", (), {}, [None, {"a": ()}]])
def test_no_result_is_refused(what: Any) -> None:
    """A model that returns no tensor is refused at its forward, and so is such a program."""
    with pytest.raises(Unsupported, match="returns no tensor") as caught:
        capture(Returns(what), (data(2, 4),))
    assert caught.value.where == f"test_results.py:{LINE}"
    with pytest.raises(Unsupported, match="returns no tensor"):
        capture(torch.export.export(Returns(what), (data(2, 4),)), (data(2, 4),))


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ({1, 2}, "a set"),
        ({"a": (1, 2j)}, "a complex as result a.1"),
        ([Output], "a type as result 0"),
        (torch.float32, "a dtype"),
    ],
)
def test_other_results_are_refused(what: Any, named: str) -> None:
    """What is neither a tensor nor a number nor a structure is named, with the way out."""
    with pytest.raises(Unsupported, match=f"the model returns {named}\n") as caught:
        capture(Returns(what), (data(2, 4),))
    assert caught.value.where == f"test_results.py:{LINE}"
    assert "return tensors" in str(caught.value.help)


def test_the_model_returns_what_it_did() -> None:
    """Capture leaves no hook behind."""
    model = Function(lambda x: Output(x))
    capture(model, (data(2, 4),))
    assert not model._forward_hooks
    assert isinstance(model(data(2, 4)), Output)


def test_no_line_of_another() -> None:
    """A forward that is not the user's own has no line to show."""
    assert forward_of(nn.Linear(2, 2)) == ""
    assert forward_of(nn.Module()) == ""
    assert forward_of(Returns(None)) == f"test_results.py:{LINE}"
