"""Kurtosis and int8 errors of what enters the ternary product, before and after the rotation."""

from __future__ import annotations

import math

import pytest
import torch

from butterflyc.compiler.errors import BadInput, Unsupported
from butterflyc.models.butterfly import ButterflyConfig, MaskedLoopButterflyMoE
from butterflyc.models.vit import DenseConfig, MlpConfig, ViT, ViTConfig
from butterflyc.paper.outliers import (
    outlier_table,
    outliers_in,
    rotated_inputs,
    ternary_error,
)

LAYER = ButterflyConfig(d_model=16, d_ff=32, experts=3, angle_std=1.0)


def vit(mlp: MlpConfig, masked_loop: bool = False) -> ViT:
    torch.manual_seed(0)
    sizes = {"image": 4, "channels": 1, "patch": 2, "classes": 3, "heads": 2, "layers": 2}
    return ViT(ViTConfig(**sizes, d_model=16, mlp=mlp), masked_loop=masked_loop).eval()


def test_normal_values_have_kurtosis_3() -> None:
    """Of a normal distribution it is 3, of two equal values 1, of one spike the row's width."""
    torch.manual_seed(0)
    assert outliers_in(torch.randn(1000, 64)).kurtosis == pytest.approx(3, abs=0.1)
    assert outliers_in(torch.tensor([[1.0, -1.0]])).kurtosis == pytest.approx(1)
    spike = torch.zeros(1, 1000)
    spike[0, 0] = 5.0
    found = outliers_in(spike)
    assert found.kurtosis == pytest.approx(998, abs=1)
    assert found.peak == pytest.approx(math.sqrt(1000))


def test_int8_errors() -> None:
    """Codes that fit have no error; a large row spoils the small one where they share a scale."""
    exact = outliers_in(torch.tensor([[127.0, 3.0, -64.0]]))
    assert exact.per_token == exact.per_tensor == 0
    mixed = outliers_in(torch.tensor([[1000.0, 1000.0], [2.0, 2.0]]))
    assert mixed.per_token == pytest.approx(0, abs=1e-12)
    # The second row is a quarter of a step, which becomes 0.
    assert mixed.per_tensor == pytest.approx(2 / math.hypot(1000, 2), rel=1e-9)


def test_rows_of_zeros() -> None:
    """Rows of zeros count for nothing; where there is nothing else, that is told."""
    rows = torch.randn(5, 8)
    assert outliers_in(torch.cat([rows, torch.zeros(3, 8)])) == outliers_in(rows)
    for same in (torch.zeros(2, 8), torch.ones(2, 8)):
        with pytest.raises(BadInput, match="all the same"):
            outliers_in(same)


@torch.no_grad()
def test_rotated_rows_are_those_of_the_product() -> None:
    """What is measured after the rotation is what the masked loop hands to the ternary product."""
    model = vit(LAYER, masked_loop=True)
    layer = model.blocks[0].mlp
    assert isinstance(layer, MaskedLoopButterflyMoE)
    entered: list[torch.Tensor] = []
    between = layer.between

    def keep(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        entered.append(rows)
        return between(rows, cos, sin)

    images = torch.rand(4, 1, 4, 4)
    layer.between = keep  # type: ignore[method-assign]
    model(images)
    wanted = outliers_in(torch.cat(entered))
    steps: list[str] = []
    found = rotated_inputs(model, images, steps.append)
    assert found[0].after.kurtosis == pytest.approx(wanted.kurtosis, rel=1e-5)
    assert found[0].after.per_token == pytest.approx(wanted.per_token, rel=1e-3)
    assert found[0].before.kurtosis != pytest.approx(found[0].after.kurtosis, rel=1e-3)
    assert len(steps) == len(found) == 2
    assert not layer.gate._forward_pre_hooks


def test_dense_model_has_no_rotations() -> None:
    """A model without Butterfly layers is refused."""
    with pytest.raises(Unsupported, match="no rotations"):
        rotated_inputs(vit(DenseConfig(d_model=16, d_ff=32)), torch.rand(1, 1, 4, 4))


def test_ternary_error() -> None:
    """0 where W is ternary; of uniform weights 5/32, since gamma is half their bound."""
    model = vit(LAYER)
    for block in model.blocks:
        block.mlp.up.data = torch.randint(0, 2, block.mlp.up.shape) * 2.0 - 1
    assert ternary_error(model) == pytest.approx(0, abs=1e-12)
    wide = vit(ButterflyConfig(d_model=16, d_ff=4096, experts=1, top_k=1))
    assert ternary_error(wide) == pytest.approx(5 / 32, rel=0.02)


def test_rows_are_means_of_layers() -> None:
    """A row has the mean over layers, and says from where to where they go."""
    model, images = vit(LAYER), torch.rand(4, 1, 4, 4)
    layers = rotated_inputs(model, images)
    rows = {row.key: row for row in outlier_table(layers, {"trained": 0.25}).rows}
    values = [each.before.per_token * 100 for each in layers]
    row = rows["outliers.per_token.before"]
    assert row.measured == pytest.approx(sum(values) / 2)
    assert f"{min(values):.2f} to {max(values):.2f} by layer" in row.why
    assert rows["outliers.ternary.trained"].measured == 25
    assert len(rows) == 9
