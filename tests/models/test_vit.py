"""The ViTs: parameter counts of the papers, equal forms, export."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from butterflyc.compiler.errors import BadInput, ButterflycError, UnknownName, UsageError
from butterflyc.models.blocks import DenseConfig
from butterflyc.models.butterfly import ButterflyConfig, linear_form
from butterflyc.models.standard import StandardConfig, StandardMoE
from butterflyc.models.vit import (
    ViT,
    ViTConfig,
    butterfly_vit,
    dense_vit,
    standard_vit,
)

SMALL = ViTConfig(
    image=8,
    channels=1,
    patch=2,
    classes=10,
    d_model=16,
    heads=2,
    layers=2,
    mlp=ButterflyConfig(d_model=16, d_ff=32, experts=4, angle_std=0.5),
)


def parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_counts_are_the_papers() -> None:
    """The default configurations have exactly the parameters of the papers' Table 1."""
    assert parameters(butterfly_vit()) == 5_661_028
    assert parameters(standard_vit()) == 31_351_140
    assert parameters(dense_vit()) == 5_583_972


def test_paper_model_has_65_tokens() -> None:
    """CIFAR's 32 x 32 pixels in patches of 4 make 64 patches and a class token."""
    assert ViTConfig().tokens == 65


@torch.no_grad()
def test_masked_loop_vit_shares_the_weights() -> None:
    """A ViT of masked loops loads a loop-free ViT's weights and computes the same."""
    torch.manual_seed(0)
    model, loop = ViT(SMALL).eval(), ViT(SMALL, masked_loop=True).eval()
    loop.load_state_dict(model.state_dict())
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(loop(images), model(images))


@torch.no_grad()
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_standard_forms_agree(top_k: int) -> None:
    """Loop, sorted and grouped dispatch compute the gated sum of the experts, idle ones too."""
    torch.manual_seed(0)
    config = StandardConfig(d_model=16, d_ff=32, experts=4, top_k=top_k, gate="topk_softmax")
    x = torch.randn(9, 16)
    layer = StandardMoE(config)
    nn.init.normal_(layer.up_bias)
    nn.init.normal_(layer.down_bias)
    layer.gate.weight[3] = 0
    x[:, 0], layer.gate.weight[:3] = 9.0, 0.1
    gates, experts = layer.gate(x).topk(top_k, dim=-1)
    gates = gates.softmax(dim=-1)
    assert (experts == 3).any() == (top_k == 4)
    wanted = torch.stack(
        [
            sum(g * layer.expert(e, row) for g, e in zip(weights, chosen.tolist(), strict=True))
            for row, weights, chosen in zip(x, gates, experts, strict=True)
        ]
    )
    for dispatch in ("loop", "sorted", "grouped"):
        form = StandardMoE(replace(config, dispatch=dispatch))
        form.load_state_dict(layer.state_dict())
        torch.testing.assert_close(form(x), wanted)


def test_patches_are_cut_row_by_row() -> None:
    """Patch number r * grid + c holds the pixels of row r, column c of the grid, row-major."""
    images = torch.arange(64.0).view(1, 1, 8, 8)
    patches = ViT(SMALL)._patches(images)
    assert patches.shape == (1, 16, 4)
    assert patches[0, 5].tolist() == [18.0, 19.0, 26.0, 27.0]


def test_exports_whole_and_small() -> None:
    """torch.export takes the model in one piece, under 150 nodes a layer, same values."""
    model = ViT(SMALL).eval()
    images = torch.rand(2, 1, 8, 8)
    program = torch.export.export(model, (images,), strict=False).run_decompositions({})
    assert len(program.graph.nodes) < 150 * SMALL.layers
    assert torch.equal(program.module()(images), model(images))
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("aten.scaled_dot_product_attention.default") == SMALL.layers


@pytest.mark.parametrize(
    "mlp",
    [
        SMALL.mlp,
        StandardConfig(d_model=16, d_ff=24, dispatch="grouped"),
        DenseConfig(d_model=16, d_ff=24),
        linear_form(16, 16, shuffle="stride"),
    ],
)
def test_configuration_survives_plain_data(mlp: Any) -> None:
    """from_dict(as_dict) is the same configuration, and it builds a model that runs."""
    config = replace(SMALL, mlp=mlp)
    assert ViTConfig.from_dict(config.as_dict()) == config
    outputs, gates = ViT(config).with_gates(torch.rand(1, 1, 8, 8))
    assert outputs.shape == (1, 10)
    assert len(gates) == (0 if isinstance(mlp, DenseConfig) else 2)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: ViTConfig(patch=5), UsageError, "patches of 5 pixels do not tile"),
        (lambda: ViTConfig(heads=3), UsageError, "3 heads do not divide"),
        (lambda: ViTConfig(d_model=64), UsageError, "an MLP from width 256 to 256 in a ViT of 64"),
        (lambda: StandardConfig(dispatch="fast"), UnknownName, "unknown dispatch 'fast'"),  # type: ignore[arg-type]
        (lambda: StandardConfig(gate="hard"), UnknownName, "unknown gate rule 'hard'"),  # type: ignore[arg-type]
        (lambda: StandardConfig(top_k=0), UsageError, "top_k = 0 of 8 experts"),
        (lambda: ViT(SMALL)(torch.rand(1, 8, 8)), BadInput, "wanted \\[batch"),
    ],
)
def test_impossible_models_are_refused(make: Any, error: type[ButterflycError], says: str) -> None:
    """A model that cannot be, or an image that does not fit, is refused with what to do."""
    with pytest.raises(error, match=says) as caught:
        make()
    assert caught.value.help
