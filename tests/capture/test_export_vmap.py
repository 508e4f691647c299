"""Functions under torch.vmap are captured as calls on whole batches, with the values of eager."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.vmap import check_constants
from butterflyc.compiler.errors import BadInput, Unsupported

from .agreement import Function, agree, data, numbers

HERE = Path(__file__).name


def line_of(text: str) -> str:
    """``file:line`` of the one line of this file that ends in ``# text``."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = (n for n, line in enumerate(lines, 1) if line.endswith(f"# {text}"))
    return f"{HERE}:{number}"


def expert(up: Tensor, down: Tensor, x: Tensor) -> Tensor:
    return down @ F.gelu(up @ x)  # one expert


def one_hot_of_largest(x: Tensor) -> Tensor:
    chosen = F.one_hot(x.argmax(-1), x.shape[-1])
    return torch.where(chosen.bool(), x, torch.zeros(()))


def scaled(x: Tensor) -> Tensor:
    place = torch.arange(x.shape[-1], dtype=x.dtype)
    return x * torch.tensor(2.5) + place * torch.tensor([1.0, -1.0, 0.5, 3.0])


def created(x: Tensor) -> Tensor:
    return x + torch.zeros_like(x).index_fill(0, torch.tensor([1]), 4.0) + x.new_ones(4).cumsum(0)


def gathered(x: Tensor, table: Tensor) -> Tensor:
    value, index = torch.topk(x, 2)
    return (value.softmax(-1)[:, None] * table[index]).sum(0)


def written_in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y[1:] += y[:-1].clone()
    y.mul_(2.0)
    return y


def normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:]) + F.pad(x[1:], (0, 1)).softmax(-1)


@pytest.mark.parametrize(
    "function", [one_hot_of_largest, scaled, created, written_in_place, normed, torch.sort]
)
def test_a_function_of_one_token_gives_what_eager_gives(function: Callable[..., Any]) -> None:
    """Calls, constants and writes inside of a function over tokens have the values of eager."""
    agree(Function(torch.vmap(function)), data(6, 4))
    agree(Function(torch.func.vmap(torch.vmap(function))), data(2, 3, 4))


@pytest.mark.parametrize(("in_dims", "out_dims"), [((0, None), 0), ((1, None), 1), ((-1, 0), -1)])
def test_in_dims_and_out_dims_are_kept(in_dims: Any, out_dims: int) -> None:
    """The batch is the axis that in_dims names, and stands where out_dims says."""

    def both(x: Tensor, y: Tensor) -> Tensor:
        return x * y.sum() + torch.arange(3.0)

    agree(Function(torch.vmap(both, in_dims, out_dims)), data(3, 3), data(3, 5))


@pytest.mark.parametrize("chunk", [None, 2])
def test_structures_and_keywords_go_through(chunk: int | None) -> None:
    """Dictionaries, tuples, numbers, keywords and chunks are passed as vmap passes them."""

    def of_tree(tree: dict[str, Any], power: int, *, shift: Tensor) -> dict[str, Any]:
        return {"sum": tree["x"] + tree["y"][0] ** power, "rest": (tree["x"] * shift.sum(),)}

    over = torch.vmap(of_tree, in_dims=({"x": 0, "y": None}, None), chunk_size=chunk)

    def whole(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        result = over({"x": x, "y": (y,)}, 2, shift=x)
        return result["sum"], result["rest"][0]

    agree(Function(whole), data(5, 4), data(4))


class Experts(nn.Module):
    """Stacked experts over all tokens, one vmap in the other; what it closes over has a name."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(data(3, 8, 4))
        self.down = nn.Parameter(data(3, 4, 8))
        self.bias = nn.Parameter(data(4))
        self.register_buffer("scale", data(4), persistent=False)
        self.router = nn.Linear(4, 3)
        self.table = data(3, 4)  # neither parameter nor buffer

    def one(self, up: Tensor, down: Tensor, x: Tensor) -> Tensor:
        return expert(up, down, x) * self.scale + self.bias

    def forward(self, tokens: Tensor) -> Tensor:
        over_tokens = torch.vmap(self.one, in_dims=(None, None, 0))
        over_experts = torch.vmap(over_tokens, in_dims=(0, 0, None))
        gates = torch.vmap(self.router)(tokens).softmax(-1)
        rows = torch.vmap(lambda g: gathered(g, self.table))(gates)
        return torch.einsum("te,etd->td", gates, over_experts(self.up, self.down, tokens)) + rows


def test_stacked_experts_over_tokens() -> None:
    """A vmap over experts of a vmap over tokens gives what eager gives, and weights keep names."""
    graph = agree(Experts(), data(7, 4)).graph
    names = {node.name for node in graph.nodes if node.op == "constant"}
    assert {"up", "down", "bias", "scale", "router.bias"} <= names, names


def test_a_vmap_made_with_the_model_and_one_inside_of_a_method_of_a_module() -> None:
    """A vmapped function made before capture is written out, too, and so is a call per token."""
    over = torch.vmap(functools.partial(expert, data(8, 4), data(4, 8)))
    agree(Function(over), data(5, 4))
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.LayerNorm(4))
    agree(Function(torch.vmap(inner)), data(5, 4))


def test_nodes_keep_the_users_lines() -> None:
    """What a vmapped function computes has the line of that function as its source."""
    graph = agree(Function(torch.vmap(expert, in_dims=(None, None, 0))), *_weights(), data(5, 4))
    sources = {node.source for node in graph.graph.nodes}
    assert line_of("one expert") in sources


def _weights() -> tuple[Tensor, Tensor]:
    return data(8, 4), data(4, 8)


def test_numbers_index_under_vmap() -> None:
    """Whole numbers from outside choose rows of a table inside of vmap."""
    agree(Function(torch.vmap(lambda i, t: t[i], in_dims=(0, None))), numbers(6), data(5, 4))


def test_vmap_is_as_before_after_capture() -> None:
    """Capture leaves vmap as it found it, also where it refuses."""
    from torch._functorch import apis

    before = apis.vmap_impl
    capture(Function(torch.vmap(scaled)), (data(3, 4),))
    with pytest.raises(BadInput, match="item"):
        capture(Function(torch.vmap(lambda x: x * x.sum().item())), (data(3, 4),))
    assert apis.vmap_impl is before
    assert torch.randn(2).shape == (2,)


def jacobian(x: Tensor) -> Tensor:
    return torch.func.jacrev(torch.sin)(x)  # jacobian


def gradient(x: Tensor) -> Tensor:
    return torch.func.grad(lambda y: y.sin().sum())(x)  # gradient


def along(x: Tensor) -> Tensor:
    return torch.func.jvp(torch.sin, (x,), (x,))[1]  # along


@pytest.mark.parametrize("function", [jacobian, gradient, along])
def test_derivatives_are_refused_by_line(function: Callable[..., Any]) -> None:
    """A derivative of torch.func in forward is refused, with its line and what to do."""
    with pytest.raises(Unsupported, match="derivative") as caught:
        capture(Function(function), (data(4),))
    assert caught.value.where == line_of(function.__name__)
    assert "write the derivative out" in (caught.value.help or "")


def test_a_gradient_inside_of_vmap() -> None:
    """A gradient of each row, taken inside of vmap, is captured with the values of eager."""
    agree(Function(torch.vmap(gradient)), data(3, 4))


def test_random_numbers_under_vmap_are_refused_by_line() -> None:
    """Random numbers drawn inside of vmap are refused, with their line."""

    def noisy(x: Tensor) -> Tensor:
        return x + torch.randn(4)  # noise

    with pytest.raises(Unsupported, match="no random numbers") as caught:
        capture(Function(torch.vmap(noisy, randomness="different")), (data(3, 4),))
    assert caught.value.where == line_of("noise")


def test_a_program_exported_with_vmap_is_refused_by_line() -> None:
    """A program that torch.export made of a vmap is refused, with the line and what to do."""
    with torch.no_grad():
        program = torch.export.export(Experts(), (data(7, 4),), strict=False)
    with pytest.raises(Unsupported, match="a vmap in an exported program") as caught:
        capture(program, (data(7, 4),))
    assert (caught.value.where or "").startswith(HERE)
    assert "the module itself" in (caught.value.help or "")


def test_a_constant_without_values_is_refused() -> None:
    """A constant that torch.export kept without its values is refused by the line that reads it."""
    with torch.no_grad():
        model = Function(lambda x: x + torch.tensor([1.0, 2.0]))
        program = torch.export.export(model, (data(3, 2),), strict=False)
    check_constants(program)
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        program.constants["lifted_tensor_0"] = torch.empty(2)
    with pytest.raises(Unsupported, match="lost the values"):
        check_constants(program)
