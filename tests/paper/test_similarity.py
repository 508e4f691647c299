"""Cosines between experts: of matrices that compute what the experts compute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from butterflyc.compiler.errors import Unsupported
from butterflyc.models.butterfly import ButterflyConfig, ButterflyMoE
from butterflyc.models.standard import StandardConfig, StandardMoE
from butterflyc.models.vit import DenseConfig, MlpConfig, ViT, ViTConfig
from butterflyc.paper.similarity import (
    Similarity,
    butterfly_matrices,
    cosines,
    figure_5,
    off_diagonal,
    similarity_of,
)

LAYER = ButterflyConfig(d_model=12, d_ff=24, experts=3, angle_std=1.0, layers_in=3)


def vit(mlp: MlpConfig) -> ViT:
    torch.manual_seed(0)
    sizes = {"image": 4, "channels": 1, "patch": 2, "classes": 3, "heads": 2, "layers": 2}
    return ViT(ViTConfig(**sizes, d_model=12, mlp=mlp))


@torch.no_grad()
@pytest.mark.parametrize("transpose", [False, True])
def test_matrices_are_the_experts(transpose: bool) -> None:
    """Without activation an expert is its effective matrix, at padded widths and transposed too."""
    torch.manual_seed(0)
    config = replace(LAYER, activation="none", transpose_in=transpose, gamma_per_row=True)
    layer = ButterflyMoE(config)
    matrices = butterfly_matrices(layer)
    x = torch.randn(5, 12)
    for expert in range(3):
        theta, phi = layer.theta[expert], layer.phi[expert]
        rows = config.rotation_in.apply(x, theta.cos(), theta.sin())
        wanted = layer.between(rows, phi.cos(), phi.sin())
        torch.testing.assert_close(x @ matrices[expert], wanted)


def test_cosines() -> None:
    """Equal matrices have 1, opposed ones -1, those without a common element 0."""
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    found = cosines(torch.stack([a, 3 * a, -a, b]))
    np.testing.assert_allclose(found[0], [1, 1, -1, 0], atol=1e-12)


def test_mean_and_largest_leave_the_diagonal_out() -> None:
    """The mean is over pairs; the largest keeps its sign."""
    matrix = np.array([[1.0, 0.25, -0.75], [0.25, 1.0, 0.0], [-0.75, 0.0, 1.0]])
    assert sorted(off_diagonal(matrix)) == [-0.75, -0.75, 0.0, 0.0, 0.25, 0.25]
    found = Similarity((matrix, np.eye(3)))
    assert found.mean == pytest.approx(-1 / 12)
    assert found.largest == -0.75


def test_one_angle_for_all_makes_experts_alike() -> None:
    """Experts with the same angles have cosine 1; angles of N(0, 1) take it away."""
    model = vit(LAYER)
    assert abs(similarity_of(model).mean) < 0.5
    for block in model.blocks:
        for angles in (block.mlp.theta, block.mlp.phi):
            angles.data[:] = angles.data[0]
    assert similarity_of(model).mean == pytest.approx(1.0)


def test_standard_experts_compare_what_goes_up() -> None:
    """Of StandardMoE the up-projections are compared."""
    model = vit(StandardConfig(d_model=12, d_ff=24, experts=3))
    layer = model.blocks[0].mlp
    assert isinstance(layer, StandardMoE)
    layer.up.data[1] = layer.up.data[0]
    found = similarity_of(model).layers[0]
    assert found[0, 1] == pytest.approx(1.0)
    assert abs(found[0, 2]) < 0.5


@pytest.mark.parametrize("mlp", [DenseConfig(12, 24), replace(LAYER, experts=1, top_k=1)])
def test_two_experts_are_needed(mlp: MlpConfig) -> None:
    """A dense model is refused, and one of a single expert."""
    with pytest.raises(Unsupported, match="without two experts"):
        similarity_of(vit(mlp))


def test_rows_have_plain_keys() -> None:
    """Each named model has a mean and a largest cosine, measured, under a key without spaces."""
    table = figure_5({"a b, it's": Similarity((np.eye(2),))})
    assert [row.key for row in table.rows] == ["figure5.a-b-it-s.mean", "figure5.a-b-it-s.largest"]
    assert [row.measured for row in table.rows] == [0.0, 0.0]
