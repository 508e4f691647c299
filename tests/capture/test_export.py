"""Capture keeps names and lines, refuses everything at once, and says what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.walk import Walk
from butterflyc.compiler.errors import BadInput, Unsupported
from butterflyc.compiler.ir.graph import Graph
from butterflyc.compiler.ir.interpret import interpret

from .agreement import Function, agree, check, data, numbers

HERE = Path(__file__).name


def line_of(text: str) -> str:
    """``file:line`` of the one line of this file that ends in ``# text``."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = (n for n, line in enumerate(lines, 1) if line.endswith(f"# {text}"))
    return f"{HERE}:{number}"


def helper(x: Tensor) -> Tensor:
    return x.exp()  # in a helper


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(data(4, 4))
        self.register_buffer("shift", data(4), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        return helper(rows @ self.weight.T + self.shift)  # the sum


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Inner(), Inner()])
        self.scale = nn.Parameter(torch.tensor([-1.5, 2.0, 1.0, 3.0]))

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layers[0](features)
        y = self.layers[1](y.tanh() * self.scale.abs())  # by a folded constant
        y = self.layers[0](y.tanh())
        return torch.where(mask, y, 0.0), y.argmax(-1)


def by_name(graph: Graph) -> dict[str, Any]:
    return {node.name: node for node in graph.nodes}


def test_names_and_lines() -> None:
    """Constants are named by the state dict, results by module and operator."""
    captured = agree(Outer(), data(3, 4), numbers(3, 1, below=2).bool())
    nodes = by_name(captured.graph)
    assert [node.name for node in captured.graph.inputs] == ["features", "mask"]
    assert nodes["layers.1.weight"].op == "constant"
    assert nodes["layers.0.shift"].op == "constant"
    assert nodes["scale.abs"].op == "constant"
    assert nodes["scale.abs"].source == line_of("by a folded constant")
    assert "scale" not in nodes
    assert nodes["layers.1.exp"].source == line_of("in a helper")
    assert nodes["layers.0.add"].source == line_of("the sum")
    assert captured.parameters == ("scale", "layers.0.weight", "layers.1.weight")
    # A module that is called twice has its constants once.
    constants = [node.name for node in captured.graph.nodes if node.op == "constant"]
    assert sum(name.startswith("layers.0.weight") for name in constants) == 1


def test_only_what_is_read_is_kept() -> None:
    """Parameters that no output needs are not part of the graph."""
    graph = capture(Function(lambda x, w: x + 1, w=data(100)), (data(3),)).graph
    assert all(array.size == 1 for array in graph.constants.values())


def test_repeated_values_are_held_once() -> None:
    """A constant that repeats one value, or one row, is stored once and broadcast."""
    graph = capture(
        Function(lambda x: x + x.new_zeros(64, 64) + row.expand(64, 64)), (data(64),)
    ).graph
    assert sum(array.size for array in graph.constants.values()) <= 1 + 64


row = data(1, 64)


def test_the_model_is_left_as_it_was() -> None:
    """Capture runs in eval mode, and leaves training modes and gradients as they were."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Sequential(nn.Dropout()).eval())
    capture(model, (data(2, 4),))
    assert [module.training for module in model.modules()] == [True, True, True, False, False]
    assert torch.is_grad_enabled()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_exported_program() -> None:
    """A program that torch.export made is taken as it is."""
    model, x = Outer().eval(), (data(3, 4), numbers(3, 1, below=2).bool())
    program = torch.export.export(model, x)
    got = interpret(capture(program, x).graph, *(t.numpy() for t in x))
    assert np.allclose(got[0], model(*x)[0].detach().numpy(), rtol=1e-5)


def test_program_and_examples_must_fit() -> None:
    """Example inputs other than those a program was exported for are refused."""
    program = torch.export.export(nn.Linear(3, 3).eval(), (data(2, 3),))
    with pytest.raises(BadInput, match=r"the graph wants float32\[2, 3\]"):
        capture(program, (data(4, 3),))
    with pytest.raises(BadInput, match="2 example inputs for a program of 1"):
        capture(program, (data(2, 3), data(2, 3)))


def test_progress_is_told() -> None:
    """Each step is told as it starts."""
    told: list[str] = []
    capture(Function(lambda x: x.clone().add_(1)), (data(3),), progress=told.append)
    assert [line.split()[0] for line in told] == ["exporting", "making", "lowering", "comparing"]


def unsupported(function: Callable[..., Any], *inputs: Tensor) -> Unsupported:
    with pytest.raises(Unsupported) as caught:
        capture(Function(function), inputs or (data(4, 4),))
    return caught.value


def test_all_refusals_at_once() -> None:
    """Every unsupported call is listed with its count, its lines and its remedy, in one error."""

    def function(x: Tensor) -> Tensor:
        y = x + torch.histc(x, 4)  # a histogram
        y = y + torch.rand(4, 4)  # a random number
        y = y + torch.linalg.inv(x)  # an inverse
        y = y + torch.rand(4, 4) * x[x > 0].mean()  # another random number
        return torch.lgamma(y)

    error = unsupported(function)
    text = str(error)
    for part in ("bins between", "aten.rand.default x2", "inv_ex", "lgamma", "mixed by 'mean'"):
        assert part in text
    for line in ("a histogram", "a random number", "another random number", "an inverse"):
        assert line_of(line) in text
    assert "draws no random numbers" in text
    assert "give the limits of the bins" in text
    assert error.where == line_of("a histogram")


def test_what_reads_a_refused_call_is_seen() -> None:
    """A call is checked also where it reads what was refused."""
    text = str(unsupported(lambda x: torch.lgamma(x.long() | 3) ** x.lgamma().long()))
    assert "bits of i64" in text
    assert "lgamma.default x2" in text


def test_a_result_without_a_value_is_refused() -> None:
    """No output goes missing in silence."""
    program = torch.export.export(Function(lambda x: x * 2), (data(4, 4),))
    walk = Walk(program, "model")
    (end,) = (node for node in program.graph.nodes if node.op == "output")
    assert walk._outputs(end) == ()
    with pytest.raises(Unsupported, match="a result that is no tensor"):
        walk.refusals.raise_if_any()


@pytest.mark.parametrize(
    ("function", "what", "help"),
    [
        (lambda x: x * 2 if x.sum() > 0 else x, "if x.sum", "torch.where"),
        (lambda x: x[: int(x.sum().item())], "a rounded number", "round the tensor"),
        (lambda x: x.cfloat(), "complex numbers", "view_as_real"),
        (lambda x: x.double() * 2, "a result in float64", "float()"),
        (lambda x: (x.half() * 2).float(), "f16", "float32"),
    ],
)
def test_refused(function: Callable[..., Any], what: str, help: str) -> None:
    """Control flow on data, complex results and wide floats are refused with the way out."""
    error = unsupported(function)
    assert what in str(error)
    assert help in str(error.help)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_program_of_any_batch(batch: int) -> None:
    """A program exported for any batch size is compiled for that of the example inputs."""
    dynamic = {"x": {0: torch.export.Dim("batch", min=1)}}

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x.reshape(x.shape[0] * 3, 4)).view(x.shape[0], 3, 6)  # flat
            return y / x.shape[0]

    program = torch.export.export(Flat(), (data(4, 3, 4),), dynamic_shapes=dynamic)
    x = data(batch, 3, 4)
    captured = capture(program, (x,))
    (got,) = interpret(captured.graph, x.numpy())
    check(got, program.module()(x).detach().numpy(), 1e-6, "the program")
    assert captured.parameters == ("inner.weight", "inner.bias")
    assert line_of("flat") in {node.source for node in captured.graph.nodes}


@pytest.mark.parametrize(("value", "count"), [(float("nan"), 2), (float("inf"), 2)])
def test_bad_weights(value: float, count: int) -> None:
    """NaN or Inf in a parameter is named and counted; a mask of -inf is no fault."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        model[1].weight[0, :2] = value
    with pytest.raises(BadInput, match=f"'1.weight' holds {count} NaN or Inf of 9 values"):
        capture(model, (data(2, 3),))
    mask = torch.full((3, 3), float("-inf")).triu(1)
    agree(Function(lambda x, m: (x + m).softmax(-1), m=mask), data(3, 3))


def test_nan_in_a_buffer() -> None:
    """NaN in a buffer is a fault too."""
    with pytest.raises(BadInput, match="'w' holds 1 NaN"):
        capture(Function(lambda x, w: x + w, w=torch.tensor([float("nan")])), (data(3),))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_are_refused(dtype: torch.dtype) -> None:
    """Models and inputs are float32."""
    with pytest.raises(Unsupported, match=str(dtype)):
        capture(nn.Linear(3, 3).to(dtype), (data(2, 3),))
    with pytest.raises(BadInput, match=str(dtype)):
        capture(nn.Linear(3, 3), (data(2, 3).to(dtype),))


TABLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index": lambda x, w: x * w[x.argmax(-1)].float(),
    "embedding": lambda x, w: torch.nn.functional.embedding(x.argmax(-1), w).to(x.dtype),
    "moved": lambda x, w: torch.stack([w[x.argmax(-1)].flip(0), w[0:4]]).float() + x,
    "promoted": lambda x, w: x - w.index_select(0, x.argmax(-1)),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", TABLES)
def test_numbers_of_16_bits_may_be_moved(name: str, dtype: torch.dtype) -> None:
    """A table of 16 bits is read by the data, and computed with in float32."""
    function = TABLES[name]
    agree(
        Function(lambda x, w, b: function(x + b, w), w=data(5, 5).to(dtype), b=data(5)), data(4, 5)
    )


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda x, w, b: w[x.argmax(-1)].cos().float() + b, "cos"),
        (lambda x, w, b: w[(x + b).argmax(-1)], "a result of 16 bits"),
        (lambda x, w, b: (w[x.argmax(-1)] * w).float() + b, "mul"),
    ],
)
def test_numbers_of_16_bits_are_not_computed_with(function: Any, what: str) -> None:
    """Arithmetic in 16 bits, and a result that is left in them, are refused."""
    with pytest.raises(Unsupported, match=what) as caught:
        capture(Function(function, w=data(5, 5).half(), b=data(5)), (data(5, 5),))
    assert caught.value.help


@pytest.mark.parametrize(
    ("model", "inputs", "what"),
    [
        (nn.Identity(), data(3), "not a tuple"),
        (nn.Identity(), [data(3)], "not a tuple"),
        (nn.Identity(), (np.zeros(3),), "ndarray"),
        (lambda x: x, (data(3),), "a function"),
        (nn.Linear, (data(3),), r"a class \(Linear\)"),
        (nn.Linear(3, 3).state_dict(), (data(3),), "OrderedDict"),
        (None, (data(3),), "NoneType"),
        (nn.ModuleList(), (data(3),), "NotImplementedError: .* is missing the required"),
        (nn.Linear(3, 3), (data(2, 4),), "fails on its example inputs"),
        (nn.Identity(), (data(3), data(3)), "fails on its example inputs"),
    ],
)
def test_bad_example_inputs(model: Any, inputs: Any, what: str) -> None:
    """What is no model, no tuple of tensors, or does not fit, is said before anything else."""
    with pytest.raises(BadInput, match=what) as caught:
        capture(model, inputs)
    assert caught.value.help


@pytest.mark.parametrize("made", [torch.jit.script, lambda m: torch.jit.trace(m, data(2, 3))])
def test_torchscript_is_refused(made: Callable[[nn.Module], Any]) -> None:
    """A model in TorchScript is refused, with the module in its place as the way out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = made(nn.Linear(3, 3))
    with pytest.raises(BadInput, match=r"the model is a .*Module\n") as caught:
        capture(model, (data(2, 3),))
    assert "torch.nn.Module that it was made of" in str(caught.value.help)


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (nn.Linear(3, 3, device="meta"), "'1.weight' is on the meta device"),
        (nn.BatchNorm1d(3, device="meta", affine=False), "'1.running_mean' is on the meta"),
        (nn.LazyLinear(3), "'1.weight' has no shape yet"),
        (nn.LazyBatchNorm1d(affine=False), "'1.running_mean' has no shape yet"),
    ],
)
def test_weights_without_values(layer: nn.Module, what: str) -> None:
    """A parameter or buffer that has no values yet is named, with what to do."""
    with pytest.raises(BadInput, match=what) as caught:
        capture(nn.Sequential(nn.Linear(3, 3), layer), (data(2, 3),))
    assert caught.value.help


def test_a_module_of_an_exported_program() -> None:
    """The module of an exported program, which has no other mode, is a module like others."""
    program = torch.export.export(nn.Linear(3, 3).eval(), (data(2, 3),))
    agree(program.module(), data(2, 3))


def test_what_torch_export_refuses() -> None:
    """Where torch.export fails for no reason of data, its own is told."""

    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not torch.compiler.is_exporting(), "not while exporting"  # asking
            return x

    with pytest.raises(Unsupported, match="AssertionError: not while exporting") as caught:
        capture(Asking(), (data(2, 3),))
    assert caught.value.where == line_of("asking")
    assert "plain calls of torch" in str(caught.value.help)


def test_what_serves_no_result_is_left_out() -> None:
    """A call that has no lowering is no fault where nothing returned depends on it."""

    def forward(x: Tensor) -> Tensor:
        torch.linalg.svd(x)
        return x * 2

    assert [node.op for node in agree(Function(forward), data(3, 3)).graph.nodes][-1] == "mul"
