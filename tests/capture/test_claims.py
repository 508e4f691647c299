"""`butterflyc.mark` and `butterflyc.register`: what they claim is proved, or it is an error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import butterflyc as bc
from butterflyc.compiler.capture import claims
from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.load import load_model
from butterflyc.compiler.capture.recognise import Recognised, recognise
from butterflyc.compiler.capture.recognise_claims import check_claims
from butterflyc.compiler.errors import Unsupported, UsageError
from butterflyc.compiler.ir import parse_graph, verify
from butterflyc.explain import Record

from .test_recognise_lookalikes import DenseSubstrate
from .test_recognise_styles import TOKENS, WIDTH, Gathered, Scattered, WhereLoop

X = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(3))
HERE = Path(__file__).name


def line_of(text: str) -> str:
    """``test_claims.py:LINE`` of the one line of this file with this text in a comment."""
    lines = Path(__file__).read_text().splitlines()
    (found,) = [i for i, line in enumerate(lines, 1) if line.endswith(f"# {text}")]
    return f"{HERE}:{found}"


@pytest.fixture(autouse=True)
def no_class_registered() -> Iterator[None]:
    """What a test registers is forgotten behind it."""
    yield
    claims._REGISTERED.clear()


def run(model: nn.Module) -> Recognised:
    graph = capture(model.eval(), (X,)).graph
    verify(graph)
    assert parse_graph(str(graph), graph.constants) == graph
    found = recognise(graph)
    verify(found.graph)
    assert "claims =" not in str(found.graph)
    return found


def refusal(model: nn.Module) -> Unsupported:
    found = run(model)
    with pytest.raises(Unsupported) as caught:
        check_claims(found.claims)
    return caught.value


class Marked(nn.Module):
    """Around a layer: the mark on its result, and a residual behind it."""

    def __init__(self, layer: nn.Module, mark: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.mark = mark

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        y = self.mark(y) if self.mark else bc.mark(y, "experts")  # the mark
        return x + torch.tanh(y)


class TwoLayers(nn.Module):
    """A layer, then a dense MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Gathered()
        self.second = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        return x + bc.mark(self.second(x))  # a dense MLP


class WithScores(Gathered):
    """Returns its result and, for a loss, the gates' scores."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), self.gate(x).softmax(-1)


class TakesFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = WithScores()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, scores = self.layer(x)
        return x + y, scores


class Twice(nn.Module):
    """One layer called twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


@pytest.mark.parametrize("kind", [Gathered, WhereLoop, Scattered])
def test_a_true_mark_is_proved(kind: type[Gathered]) -> None:
    """The mark on a layer's result names the layer that proves it, and its own line."""
    found = run(Marked(kind()))
    (claim,) = found.claims
    assert (claim.what, claim.layer) == ("mark 'experts'", "layer")
    assert claim.source == line_of("the mark")
    assert found.layers[0].recognised == "full"
    check_claims(found.claims)


def test_a_mark_changes_nothing_but_the_claim() -> None:
    """The graph behind recognition is the same with the mark and without."""
    plain = run(Marked(Gathered(), lambda y: y))
    assert plain.claims == ()
    assert run(Marked(Gathered())).graph == plain.graph


def test_a_mark_sees_through_layouts() -> None:
    """A reshaped result is still the layer's result."""
    found = run(Marked(Gathered(), lambda y: bc.mark(y.reshape(1, TOKENS, WIDTH).mT).mT[0]))
    assert found.claims[0].layer == "layer"


def test_a_marked_result_is_taken_before_a_further_one() -> None:
    """Where W_down follows the mark, the layer ends at the mark; without it, behind W_down."""

    class DownBehind(Gathered):
        def __init__(self, mark: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.mark = mark

        def forward(self, x: Tensor) -> Tensor:
            gates, experts = self.route(x)
            rows = x[:, None].expand(-1, experts.shape[1], -1)
            hidden = self.hidden(rows, self.theta[experts], self.phi[experts])
            return self.down(self.mark((hidden * gates[..., None]).sum(1)))

    found = run(DownBehind(bc.mark))
    check_claims(found.claims)
    assert found.layers[0].parts["down"] == "absent"
    assert run(DownBehind(lambda y: y)).layers[0].parts["down"].startswith("dense")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Marked(nn.Linear(WIDTH, WIDTH)), "no top-k, argmax or sort of gate scores leads to it"),
        (Marked(DenseSubstrate()), "no matrix of the experts is ternary"),
        (Marked(Gathered(), lambda y: bc.mark(torch.tanh(y))), "nothing routes between the result"),
        (Marked(Gathered(), lambda y: bc.mark(torch.ones(WIDTH)) + y), "it depends on no input"),
    ],
)  # fmt: skip
def test_a_false_mark_is_an_error(model: nn.Module, reason: str) -> None:
    """What is no layer's result is refused with the recogniser's reason and a source line."""
    error = refusal(model)
    assert error.exit_status == 3
    assert "not the result of a Butterfly layer" in error.what
    assert reason in error.what
    assert (error.where or "").startswith(HERE)
    assert error.help


def test_a_dense_layer_behind_a_true_one() -> None:
    """A mark on a dense MLP is false by its own line, although a layer stands in front of it."""
    error = refusal(TwoLayers())
    assert error.where == line_of("a dense MLP")
    assert "nothing routes between the result of the layer 'first'" in error.what


def test_a_part_of_a_layer_is_not_its_result() -> None:
    """A mark on the experts' rows, before the gates, is false."""

    class Inside(Gathered):
        def hidden(self, x: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
            return bc.mark(super().hidden(x, theta, phi))

    assert "it lies inside of the layer" in refusal(Inside()).what


def test_a_mark_under_vmap() -> None:
    """A mark in a function that vmap maps over the tokens is one on all of them."""

    class Mapped(Gathered):
        def forward(self, x: Tensor) -> Tensor:
            def token(row: Tensor) -> Tensor:
                return bc.mark(super(Mapped, self).forward(row[None]))[0]

            return torch.vmap(token)(x)

    (claim,) = run(Mapped()).claims
    assert claim.layer


def test_every_false_mark_is_listed() -> None:
    """One error has all false marks, each with its line."""

    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = bc.mark(x.exp(), "one")
            return bc.mark(x.tanh(), "two {#}")

    error = refusal(Both())
    assert error.what.startswith("2 marked values are not the result")
    assert "mark 'one'" in error.what
    assert "mark 'two _'" in error.what


def test_a_mark_is_identity_outside_of_export() -> None:
    """In eager the tensor itself is returned, and gradients are those of the model without it."""
    x = X.clone().requires_grad_()
    assert bc.mark(x) is x
    model, plain = Marked(Gathered()), Marked(Gathered(), lambda y: y)
    grads = []
    for each in (model, plain):
        y = each(x)
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        grads.append((y, grad))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])


def test_an_exported_mark_passes_gradients() -> None:
    """The op that stands in an exported program computes its input, and hands gradients back."""
    program = torch.export.export(Marked(Gathered()).eval(), (X,), strict=False)
    assert any(str(node.target) == claims.MARK for node in program.graph.nodes)
    x = X.clone().requires_grad_()
    y = program.module()(x)
    torch.testing.assert_close(y, Marked(Gathered())(X))
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.abs().sum() > 0
    torch.library.opcheck(torch.ops.butterflyc.mark.default, (x, "label"))


@pytest.mark.parametrize("strict", [False, True])
def test_a_mark_in_a_saved_program(tmp_path: Path, strict: bool) -> None:
    """A .pt2 keeps its marks: a true one is proved, a false one refused with its line."""
    for layer, true in ((Gathered(), True), (DenseSubstrate(), False)):
        program = torch.export.export(Marked(layer).eval(), (X,), strict=strict)
        torch.export.save(program, tmp_path / "m.pt2")
        model, inputs = load_model(str(tmp_path / "m.pt2"))
        (claim,) = recognise(capture(model, inputs).graph).claims
        assert bool(claim.layer) == true
        assert claim.source == line_of("the mark")


def test_a_saved_program_is_read_by_a_process_that_marked_nothing(tmp_path: Path) -> None:
    """The command line reads a .pt2 with marks, and refuses a false one with 3."""
    program = torch.export.export(Marked(nn.Linear(WIDTH, WIDTH)).eval(), (X,))
    torch.export.save(program, tmp_path / "m.pt2")
    command = [sys.executable, "-m", "butterflyc", "compile", "m.pt2", "-o", "m.bfly", "--explain"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "error[BF301]: a marked value is not the result of a Butterfly layer" in done.stderr
    assert f"  at {line_of('the mark')}" in done.stderr
    assert "FALSE: no top-k" in done.stdout


def test_compile_checks_marks_and_reports_them() -> None:
    """`compile` raises for a false mark, with the layers it found in the record."""
    record = Record()
    with pytest.raises(Unsupported, match="ternary"):
        bc.compile(Marked(DenseSubstrate()).eval(), (X,), record=record)
    data = record.explanation()
    assert data["layers"][0]["recognised"] == "none"
    assert data["marks"][0]["layer"] == ""
    assert "ternary" in data["marks"][0]["reason"]
    program = bc.compile(Marked(Gathered()).eval(), (X,))
    assert program.report["marks"][0]["layer"] == "layer"
    torch.testing.assert_close(program(X), Marked(Gathered())(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [3, None, [X]])
def test_a_mark_takes_a_tensor(value: Any) -> None:
    """A mark on what is no tensor says what to mark."""
    with pytest.raises(UsageError, match="mark of a"):
        bc.mark(value)


def test_a_registered_class_is_proved() -> None:
    """What each module of a registered class returns is proved; its subclasses are not meant."""
    assert bc.register(Gathered) is Gathered
    plain = Marked(Gathered(), lambda y: y)
    (claim,) = run(plain).claims
    assert (claim.what, claim.layer) == ("class Gathered, 'layer'", "layer")
    assert run(Marked(DenseSubstrate(), lambda y: y)).claims == ()
    (whole,) = run(Gathered()).claims
    assert whole.what == "class Gathered, the model itself"
    assert whole.layer


def test_a_false_class_is_an_error() -> None:
    """A module of a registered class that is no Butterfly layer is refused with the reason."""
    bc.register(DenseSubstrate)
    error = refusal(Marked(DenseSubstrate(), lambda y: y))
    assert "class DenseSubstrate, 'layer'" in error.what
    assert "no matrix of the experts is ternary" in error.what
    assert error.where


def test_one_of_several_results_is_enough() -> None:
    """A registered layer that also returns its scores is proved by the other tensor."""
    bc.register(WithScores)
    (claim,) = run(TakesFirst()).claims
    assert claim.layer


def test_each_call_of_a_module_is_a_claim() -> None:
    """A registered module that is called twice makes two claims."""
    bc.register(Gathered)
    found = run(Twice(Gathered()))
    assert [claim.what for claim in found.claims] == [
        "class Gathered, 'layer'",
        "class Gathered, 'layer', call 2",
    ]
    check_claims(found.claims)


def test_a_class_of_a_saved_program(tmp_path: Path) -> None:
    """In a .pt2 a registered class is known by its full name."""
    program = torch.export.export(Marked(Gathered(), lambda y: y).eval(), (X,))
    torch.export.save(program, tmp_path / "m.pt2")
    bc.register(Gathered)
    (claim,) = recognise(capture(*load_model(str(tmp_path / "m.pt2"))).graph).claims
    assert claim.layer


def test_classes_of_a_file_are_those_that_it_registers_now(tmp_path: Path) -> None:
    """A model's file that is run again registers its classes anew."""
    text = """
import torch, butterflyc
from torch import nn
{decorator}
class Layer(nn.Module):
    def forward(self, x): return x.exp()
def make(): return nn.Sequential(Layer(), nn.Tanh()), (torch.ones(2, 3),)
"""
    for decorator, count in (("@butterflyc.register", 1), ("", 0)):
        (tmp_path / "model.py").write_text(text.format(decorator=decorator))
        model, inputs = load_model(f"{tmp_path / 'model.py'}:make")
        assert len(recognise(capture(model, inputs).graph).claims) == count


@pytest.mark.parametrize("value", [3, int, Gathered()])
def test_only_classes_of_modules_are_registered(value: Any) -> None:
    """Another thing than a class of modules is refused."""
    with pytest.raises(UsageError, match="register of"):
        bc.register(value)
