"""Whole models, ours and others', mean in the graph what they mean in PyTorch."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.errors import BadInput, Unsupported
from butterflyc.models.blocks import DenseConfig
from butterflyc.models.butterfly import ButterflyConfig, ButterflyMoE, linear_form
from butterflyc.models.rotation import SHUFFLES
from butterflyc.models.routing import GATE_RULES
from butterflyc.models.standard import StandardConfig
from butterflyc.models.vit import ViT, ViTConfig, butterfly_vit

from . import zoo
from .agreement import agree, data, numbers

SMALL = ViTConfig(
    image=8, channels=1, patch=2, classes=10, d_model=16, heads=2, layers=2,
    mlp=ButterflyConfig(d_model=16, d_ff=32, experts=4, angle_std=0.5),
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (zoo.PatchViT, (data(2, 3, 8, 8),)),
        (zoo.Decoder, (numbers(2, 6, below=11),)),
        (zoo.ConvNet, (data(2, 3, 8, 8),)),
        (zoo.WeighedExperts, (data(2, 5, 8),)),
        (zoo.MaskedExperts, (data(2, 5, 8),)),
        (zoo.StackedExperts, (data(2, 5, 8),)),
    ],
)
def test_zoo(model: type[nn.Module], inputs: tuple[Any, ...]) -> None:
    """Plain transformers, convolution nets and dense mixtures of experts."""
    torch.manual_seed(0)
    agree(model(), *inputs)


@pytest.mark.parametrize("norm_first", [True, False])
def test_torch_encoder(norm_first: bool) -> None:
    """torch's own encoder layer, without its fused kernel."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
    agree(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), data(2, 5, 16))
    assert torch.backends.mha.get_fastpath_enabled()


def test_multihead_attention() -> None:
    """torch's attention module, with the averaged weights that it also returns."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=True)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: torch.Tensor, memory: torch.Tensor) -> Any:
            return self.attention(x, memory, memory)

    agree(Wrapped(), data(2, 5, 16), data(2, 7, 16))


@st.composite
def layer_configs(draw: st.DrawFn) -> ButterflyConfig:
    """Any ButterflyMoE layer of small width, padded widths included."""
    d, f = draw(st.sampled_from([2, 5, 8, 12])), draw(st.sampled_from([4, 6, 16]))
    padded = [1 << (n - 1).bit_length() for n in (d, f)]
    depths = [draw(st.integers(1, n.bit_length() - 1)) for n in padded]
    experts = draw(st.integers(1, 4))
    form = draw(st.sampled_from([ButterflyConfig, linear_form]))
    plain = form is linear_form
    return form(
        d, f,
        layers_in=depths[0], layers_out=depths[1], experts=experts,
        top_k=draw(st.integers(1, experts)),
        shuffle=draw(st.sampled_from(SHUFFLES)),
        shuffle_first=draw(st.booleans()),
        transpose_out=draw(st.booleans()),
        gate=draw(st.sampled_from(GATE_RULES)),
        gate_bias=draw(st.booleans()),
        gamma_per_row=draw(st.booleans()),
        up_bias=draw(st.booleans()),
        angle_std=0.5,
        **({} if plain else {
            "activation": draw(st.sampled_from(["gelu", "gelu_tanh", "none"])),
            "activation_after": draw(st.booleans()),
            "down": draw(st.sampled_from(["float", "ternary"])),
            "down_bias": draw(st.sampled_from(["none", "weighted", "once"])),
            "down_first_sum": draw(st.booleans()),
        }),
    )  # fmt: skip


@given(layer_configs(), st.integers(1, 5))
@settings(max_examples=25)
def test_layers(config: ButterflyConfig, tokens: int) -> None:
    """A ButterflyMoE layer of any form."""
    torch.manual_seed(tokens)
    agree(ButterflyMoE(config), data(tokens, config.d_model))


@pytest.mark.parametrize(
    "mlp",
    [
        SMALL.mlp,
        ButterflyConfig(d_model=16, d_ff=24, experts=3, top_k=1, shuffle="stride", angle_std=0.5),
        DenseConfig(d_model=16, d_ff=32),
    ],
)
def test_our_vits(mlp: Any) -> None:
    """Our ViTs capture to graphs without a loop over experts, and agree with eager."""
    torch.manual_seed(0)
    captured = agree(ViT(replace(SMALL, mlp=mlp)), data(3, 1, 8, 8))
    assert len(captured.graph.nodes) < 160 * SMALL.layers
    assert "blocks.1.attention.qkv.weight" in {node.name for node in captured.graph.nodes}


def test_ternary_codes_are_those_of_eager() -> None:
    """What eager would round at run time is rounded by torch itself: the codes are bit-equal."""
    torch.manual_seed(0)
    layer = ButterflyMoE(ButterflyConfig(d_model=64, d_ff=256, experts=2))
    from butterflyc.models.ternary import ternary

    graph = capture(layer, (data(3, 64),)).graph
    want = ternary(layer.up).detach().numpy()
    found = [graph.value(node) for node in graph.nodes if node.name.startswith("up")]
    assert any(array.shape == want.shape and (array == want).all() for array in found)


def test_grouped_experts_are_refused() -> None:
    """Products of groups of rows that the data sorts are refused at their line, with a rewrite."""
    model = ViT(replace(SMALL, mlp=StandardConfig(16, 32, experts=4, dispatch="grouped")))
    with pytest.raises(Unsupported) as caught:
        capture(model, (data(1, 1, 8, 8),))
    assert "standard.py:" in str(caught.value.where)
    assert caught.value.help


@pytest.mark.parametrize("dispatch", ["loop", "sorted"])
def test_standard_experts_in_a_loop(dispatch: Any) -> None:
    """A loop over each expert's rows, by `nonzero` or sorted and split, is captured and agrees."""
    agree(
        ViT(replace(SMALL, mlp=StandardConfig(16, 32, experts=4, dispatch=dispatch))),
        data(1, 1, 8, 8),
    )


def test_masked_loop(capfd: pytest.CaptureFixture[str]) -> None:
    """Algorithm 2 as printed, which asks whether an expert has tokens, is captured and agrees."""
    agree(ViT(SMALL, masked_loop=True), data(1, 1, 8, 8))
    # Of the first try torch.export would print its graph here, and log a warning.
    assert capfd.readouterr().err.strip() == ""


def test_wrong_shape_for_the_model() -> None:
    """A model that refuses its example inputs says so itself."""
    with pytest.raises(BadInput, match="images of shape"):
        capture(ViT(SMALL), (data(1, 3, 8, 8),))


@pytest.mark.slow
def test_paper_vit() -> None:
    """The papers' ButterflyViT is captured in seconds, to a hundred nodes a layer or so."""
    torch.manual_seed(0)
    model, image = butterfly_vit(), data(1, 3, 32, 32)
    started = time.process_time()
    captured = capture(model, (image,))
    assert time.process_time() - started < 30
    assert len(captured.graph.nodes) < 1000
    agree(model, image)
