"""A graph held against its model: ties that rounding decides are told from real differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from butterflyc.compiler.capture.arguments import Arguments
from butterflyc.compiler.capture.doubled import Doubled
from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.idle import check_also_idle, check_same, lasting_difference
from butterflyc.compiler.capture.pushed import Push, PushedCalls, with_pushed
from butterflyc.compiler.capture.site import LOWERINGS
from butterflyc.compiler.errors import Unsupported
from butterflyc.compiler.ir.graph import Graph
from butterflyc.compiler.ir.interpret import interpret

from .agreement import Function, check, data

TOKENS, WIDTH, EXPERTS = 12, 6, 4
W = data(EXPERTS, WIDTH, WIDTH)
ROUTER = data(EXPERTS, WIDTH, seed=5)
ROUNDING = 2.0**-22
Scores = Callable[[Tensor], Tensor]


def routed(scores: Scores) -> Function:
    """Each row through the matrix of its best expert."""

    def forward(x: Tensor) -> Tensor:
        best = scores(x).argmax(-1)
        return torch.einsum("tij,tj->ti", W[best], x)

    return Function(forward)


def plain(x: Tensor) -> Tensor:
    return x @ ROUTER.T


def twins(x: Tensor) -> Tensor:
    """Scores of which each is there twice: every row is a tie."""
    return plain(x)[:, [0, 1, 0, 1]]


def rounded_up(scores: Scores, by: float) -> Scores:
    """Scores of which the last two are larger by a factor, in size."""

    def changed(x: Tensor) -> Tensor:
        s = scores(x)
        return s + s.abs() * by * torch.tensor([0.0, 0.0, 1.0, 1.0])

    return changed


def graph_of(model: nn.Module, x: Tensor) -> Graph:
    return capture(model, (x,)).graph


def test_a_tie_that_rounding_decides_is_no_difference() -> None:
    """Rows sent elsewhere by a unit of rounding are let pass, whatever routing is pushed."""
    x = data(TOKENS, WIDTH)
    graph, model = graph_of(routed(twins), x), routed(rounded_up(twins, ROUNDING))
    (now,) = interpret(graph, x.numpy())
    assert np.abs(now - model(x).numpy()).max() > 0.1
    check_also_idle(model, graph, Arguments((x,)))
    check_same(model, graph, Arguments((x,)), writes=True)


def test_rows_sent_elsewhere_by_more_are_a_difference() -> None:
    """Scores that differ by half are seen, though each way of comparing moves them."""
    x = data(TOKENS, WIDTH)
    graph, model = graph_of(routed(plain), x), routed(rounded_up(plain, 0.5))
    with pytest.raises(Unsupported, match="asks whether an expert has tokens"):
        check_also_idle(model, graph, Arguments((x,)))
    with pytest.raises(Unsupported, match="writes in place"):
        check_same(model, graph, Arguments((x,)), writes=True)


def quantised(x: Tensor, scale: float = 1.0) -> Tensor:
    return (x * 8 * scale).round() / 8


def test_a_number_on_the_edge_of_rounding_is_no_difference() -> None:
    """Halves that another rounding of the product moves to the next whole number are let pass."""
    x = (torch.arange(24.0).reshape(4, 6) + 0.5) / 8
    model = Function(lambda x: quantised(x * 1.1, 1 + ROUNDING))
    graph = graph_of(Function(lambda x: quantised(x * 1.1)), x / 1.1)
    on_edge = x / 1.1
    (now,) = interpret(graph, on_edge.numpy())
    assert np.abs(now - model(on_edge).numpy()).max() > 0.1
    assert lasting_difference(model, graph, Arguments((on_edge,))) < 1e-4


@pytest.mark.parametrize("by", [1e-3, 0.1, 10.0])
def test_a_real_difference_lasts(by: float) -> None:
    """What is added to one number of many is found again by every way of comparing."""
    x = data(TOKENS, WIDTH)
    graph = graph_of(routed(plain), x)
    one = torch.zeros(TOKENS, WIDTH)
    one[3, 2] = by
    base = routed(plain)
    found = lasting_difference(Function(lambda x: base(x) + one), graph, Arguments((x,)))
    assert found == pytest.approx(by / (base(x) + one).abs().max().item(), rel=0.1)


@pytest.mark.parametrize("special", ["equal", "whole", "zero"])
def test_questions_about_exact_numbers_are_kept(special: str) -> None:
    """A difference only where two inputs are equal, or one is whole or zero, is still seen."""

    def asks(x: Tensor) -> Tensor:
        exact = {"equal": x[0] == x[1], "whole": x[0] == x[0].round(), "zero": x[0] == 0}[special]
        return x + exact

    x = data(TOKENS, WIDTH)
    x[:2, 1] = {"equal": 0.3, "whole": 2.0, "zero": 0.0}[special]
    x[1, 1] = x[1, 1] if special == "equal" else 7.7
    graph = graph_of(Function(lambda x: x * 1.0), x)
    assert lasting_difference(Function(asks), graph, Arguments((x,))) > 0.1


def test_infinity_is_no_nan() -> None:
    """A result that is infinite in the model and not a number in the graph differs."""
    x = data(3, 4)
    graph = graph_of(Function(lambda x: x * 0 + float("nan")), x)
    assert lasting_difference(
        Function(lambda x: x + float("inf")), graph, Arguments((x,))
    ) == float("inf")
    assert lasting_difference(Function(lambda x: x * float("nan")), graph, Arguments((x,))) == 0


CHOICES: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "topk": lambda x: tuple(x.topk(2)),
    "topk_smallest": lambda x: tuple(x.topk(2, largest=False)),
    "topk_of_columns": lambda x: tuple(torch.topk(input=x, k=3, dim=0)),
    "sort": lambda x: tuple(x.sort()),
    "argsort": lambda x: (torch.argsort(x, descending=True, stable=True),),
    "kthvalue": lambda x: tuple(x.kthvalue(2)),
    "median": lambda x: tuple(x.median(-1)),
    "median_of_all": lambda x: (x.median(),),
    "argmax": lambda x: (x.argmax(-1),),
    "argmin_of_columns": lambda x: (x.argmin(0, keepdim=True),),
    "argmax_of_all": lambda x: (x.argmax(),),
    "max": lambda x: tuple(x.max(-1)),
    "min": lambda x: tuple(torch.min(x, dim=0)),
    "max_alone": lambda x: (x.max(), x.amax(-1), torch.max(x, x * 2), x.abs().amax(-1)),
    "of_integers": lambda x: tuple((x * 100).int().sort()),
}


@pytest.mark.parametrize("push", [Push(1), Push(2), Push(None, 0.1), Push(1, 0.1)], ids=str)
@pytest.mark.parametrize("name", CHOICES)
def test_scores_are_pushed_alike(name: str, push: Push) -> None:
    """However a model chooses, and along whatever axis, its graph chooses as it does."""
    x = data(5, 7)
    model = Function(CHOICES[name])
    graph = with_pushed(graph_of(model, x), push)
    with PushedCalls(push):
        wanted = model(x)
    for mine, theirs in zip(interpret(graph, x.numpy()), wanted, strict=True):
        check(mine, theirs.numpy(), 1e-6, name)


def test_pushed_scores_choose_others() -> None:
    """Half of the experts are left, or as many as are chosen: none that is pushed down is."""
    x = data(50, 8)
    with PushedCalls(Push(2)):
        few = x.topk(3).indices
    with PushedCalls(Push(1)):
        half = x.topk(3).indices
        many = x.topk(7).values
    assert len(few.unique()) == 3
    assert len(half.unique()) == 4
    assert (many > -100).all()


class Careless(nn.Module):
    """Asks for float32 by name, makes tensors of its own, and writes to one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.register_buffer("seen", torch.zeros(6))
        self.seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(x.shape, dtype=torch.float32)
        y[:, :3] = self.layer(x.float()).to(torch.float32)[:, :3]
        self.seen.add_(y.mean(0))
        turned = torch.view_as_complex(y.unflatten(-1, (3, 2))) * torch.polar(
            torch.ones(3), torch.ones(3)
        )
        return torch.view_as_real(turned).flatten(-2) + self.seen


def test_models_run_in_double_whatever_they_ask_for() -> None:
    """A model that names float32 gives what its double gives, to 1e-12, and keeps its buffers."""
    torch.manual_seed(0)
    model, x = Careless(), data(4, 6)
    with torch.no_grad(), Doubled():
        got = model(x)
    assert (model.seen == 0).all()
    w, b = model.layer.weight.double(), model.layer.bias.double()
    y = torch.zeros(4, 6, dtype=torch.float64)
    y[:, :3] = (x.double() @ w.T + b)[:, :3]
    phase = torch.polar(torch.ones(3).double(), torch.ones(3).double())
    turned = torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (3, 2))) * phase)
    check(got.numpy(), (turned.flatten(-2) + y.mean(0)).detach().numpy(), 1e-12, "in double")


def test_a_graph_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in a lowering, a result other than PyTorch's is never compiled."""
    module = Function(lambda x: x.sin() + 1)
    monkeypatch.setitem(LOWERINGS, "aten.sin", LOWERINGS["aten.cos"])
    with pytest.raises(Unsupported, match="differs by") as caught:
        capture(module, (data(3, 4),))
    assert "report" in str(caught.value.help)
    with pytest.raises(Unsupported, match="differs by"):
        capture(torch.export.export(module, (data(3, 4),)), (data(3, 4),))
