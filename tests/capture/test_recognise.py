"""Recognition of our own models: every configuration in full, and equal in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.recognise import Recognised, recognise
from butterflyc.compiler.ir import Graph, parse_graph, verify
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.models.blocks import DenseConfig
from butterflyc.models.butterfly import ButterflyConfig, ButterflyMoE, linear_form
from butterflyc.models.rotation import SHUFFLES, padded_width
from butterflyc.models.routing import GATE_RULES
from butterflyc.models.vit import ViT, ViTConfig

EXACT = 1e-9


def spread(model: nn.Module) -> nn.Module:
    """The model with biases that are not zero, so that a lost one is seen."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def run(model: nn.Module, x: Tensor) -> tuple[Graph, Recognised]:
    graph = capture(spread(model), (x,)).graph
    return graph, recognise(graph)


def difference(was: Graph, now: Graph, x: Tensor) -> float:
    """The largest difference of the results in double precision, relative to the largest."""
    (a,), (b,) = (interpret(graph, x.numpy(), precision="f64") for graph in (was, now))
    return float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-300))


@st.composite
def configurations(draw: st.DrawFn) -> tuple[ButterflyConfig, tuple[int, ...], int]:
    """Any layer of models/butterfly.py, a shape of its input, and a seed."""
    width, hidden = draw(st.integers(2, 20)), draw(st.integers(2, 24))
    experts = draw(st.integers(2, 6))
    down = draw(st.sampled_from(["float", "ternary", "absent"]))
    choices: dict[str, Any] = {
        name: draw(st.booleans())
        for name in (
            "shuffle_first",
            "transpose_in",
            "transpose_out",
            "activation_after",
            "gate_bias",
            "gamma_per_row",
            "up_bias",
            "down_first_sum",
        )
    }
    config = ButterflyConfig(
        d_model=width,
        d_ff=hidden,
        experts=experts,
        top_k=draw(st.integers(1, min(4, experts))),
        layers_in=draw(st.integers(1, padded_width(width).bit_length() - 1)),
        layers_out=draw(st.integers(1, padded_width(hidden).bit_length() - 1)),
        shuffle=draw(st.sampled_from(SHUFFLES)),  # type: ignore[arg-type]
        activation=draw(st.sampled_from(["gelu", "gelu_tanh", "none"])),
        gate=draw(st.sampled_from(GATE_RULES)),  # type: ignore[arg-type]
        down=down,
        down_bias="none"
        if down == "absent"
        else draw(st.sampled_from(["none", "weighted", "once"])),
        angle_std=0.5,
        **choices,
    )
    lead = draw(st.one_of(st.tuples(st.integers(1, 9)), st.tuples(st.just(2), st.integers(1, 4))))
    return config, (*lead, width), draw(st.integers(0, 2**16))


@settings(max_examples=25)
@given(configurations())
def test_every_configuration_is_recognised_in_full(
    drawn: tuple[ButterflyConfig, tuple[int, ...], int],
) -> None:
    """Any ButterflyMoE is rebuilt, exactly, with all its experts and its number of layers."""
    config, shape, seed = drawn
    torch.manual_seed(seed)
    x = torch.randn(*shape)
    was, found = run(ButterflyMoE(config), x)
    (report,) = found.layers
    assert report.recognised == "full", report
    assert (report.experts_found, report.experts, report.k) == (
        config.experts,
        config.experts,
        config.top_k,
    )
    assert report.residual is not None
    assert report.residual <= EXACT
    assert difference(was, found.graph, x) <= EXACT
    verify(found.graph)
    rotations = [node for node in found.graph.nodes if node.op == "rotate"]
    assert len(rotations) == (config.layers_in + config.layers_out) * config.top_k
    assert all(node.operands[1].type.shape[2:] == (2, 2) for node in rotations)


def test_linear_form_needs_no_activation() -> None:
    """B(phi) W_hat B(theta)^T x is found by its ternary product, full depth and padded widths."""
    torch.manual_seed(0)
    x = torch.randn(5, 24)
    was, found = run(ButterflyMoE(linear_form(24, 40, layers_in=5, layers_out=6)), x)
    assert found.layers[0].recognised == "full"
    assert found.layers[0].parts["down"] == "absent"
    assert difference(was, found.graph, x) <= EXACT


def vit(mlp: Any) -> ViT:
    torch.manual_seed(0)
    return ViT(
        ViTConfig(image=8, channels=1, patch=2, classes=10, d_model=32, heads=4, layers=2, mlp=mlp)
    )


def test_all_layers_of_a_vit_are_recognised() -> None:
    """Each layer of a ViT is found under its name in the model, with its source line."""
    x = torch.randn(1, 1, 8, 8)
    lines: list[str] = []
    model = vit(ButterflyConfig(d_model=32, d_ff=64, angle_std=0.3))
    was = capture(spread(model), (x,)).graph
    found = recognise(was, progress=lines.append)
    assert [report.path for report in found.layers] == ["blocks.0.mlp", "blocks.1.mlp"]
    assert {report.recognised for report in found.layers} == {"full"}
    assert all("butterfly.py:" in report.source for report in found.layers)
    assert [line.split(" (")[0] for line in lines] == [
        "recognise 1/2 blocks.0.mlp: full",
        "recognise 2/2 blocks.1.mlp: full",
    ]
    assert difference(was, found.graph, x) <= EXACT
    assert "blocks.1.mlp.in1.shuffle" in {node.name for node in found.graph.nodes}
    assert parse_graph(str(found.graph), found.graph.constants) == found.graph


def test_recognition_is_repeatable() -> None:
    """The same graph gives the same graph and report, whatever numbers were used to probe."""
    x = torch.randn(1, 1, 8, 8)
    graph = capture(spread(vit(ButterflyConfig(d_model=32, d_ff=64))), (x,)).graph
    first, again, other = recognise(graph), recognise(graph), recognise(graph, seed=5)
    assert first.layers == again.layers
    assert first.graph == again.graph == other.graph


def test_other_mlps_stay_as_they_are() -> None:
    """A dense ViT keeps its graph, and has nothing to report."""
    was, found = run(vit(DenseConfig(d_model=32, d_ff=64)), torch.randn(1, 1, 8, 8))
    assert found.layers == ()
    assert found.graph == was


def test_report_is_plain_data() -> None:
    """A report as data names every part that `inspect recognition` shows."""
    torch.manual_seed(0)
    _, found = run(ButterflyMoE(ButterflyConfig(d_model=8, d_ff=12, experts=3)), torch.randn(4, 8))
    data = found.layers[0].as_dict()
    assert set(data["parts"]) == {"rotation_in", "substrate", "rotation_out", "routing", "down"}
    assert data["parts"]["rotation_in"].startswith("2 layers of 2x2 blocks on 8 channels, Givens")
    assert "zero-padded from 12 to 16" in data["parts"]["rotation_out"]
    assert (data["experts_found"], data["experts"], data["k"]) == (3, 3, 2)
