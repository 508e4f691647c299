"""Figure 5 of ButterflyViT: how much alike the experts of a trained model are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..compiler.errors import Unsupported
from ..models.butterfly import ButterflyMoE
from ..models.standard import StandardMoE
from ..models.ternary import ternary
from .rows import Row, Table


@dataclass(frozen=True)
class Similarity:
    """Cosines between the experts of each MoE layer: ``layers`` has a matrix [E, E] a layer."""

    layers: tuple[NDArray[np.float64], ...]

    @property
    def mean(self) -> float:
        """The mean off-diagonal cosine, over all pairs of experts and all layers."""
        return float(np.mean([off_diagonal(each).mean() for each in self.layers]))

    @property
    def largest(self) -> float:
        """The largest off-diagonal cosine by magnitude: the two experts most alike, or opposed."""
        values = np.concatenate([off_diagonal(each) for each in self.layers])
        return float(values[np.abs(values).argmax()])


def off_diagonal(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The elements [E * (E - 1)] of a matrix [E, E] that are not on its diagonal."""
    return matrix[~np.eye(len(matrix), dtype=bool)]


def similarity_of(model: nn.Module) -> Similarity:
    """Cosines of the experts' effective matrices, flattened.

    Of a ButterflyMoE layer the effective matrix [F, d] is B(phi_i) W_hat B(theta_i) (eq. 3): the
    ternary W_hat, with GELU between the two left out, which is the same for all. W_down is shared
    and left out. Of a StandardMoE layer it is its up-projection W1_i [F, d]. Unsupported for a
    model that has no two experts in a layer.
    """
    found = []
    for layer in model.modules():
        if isinstance(layer, ButterflyMoE):
            found.append(cosines(butterfly_matrices(layer)))
        elif isinstance(layer, StandardMoE):
            found.append(cosines(layer.up.detach()))
    if not found or len(found[0]) < 2:
        raise Unsupported(
            "a model without two experts in a layer has none to compare",
            help="give a checkpoint of a ButterflyViT or of a StandardMoE ViT",
        )
    return Similarity(tuple(found))


@torch.no_grad()
def butterfly_matrices(layer: ButterflyMoE) -> Tensor:
    """The transposes [E, d, F] of all B(phi_i) W_hat B(theta_i)."""
    config = layer.config
    basis = torch.eye(config.d_model, device=layer.up.device).unsqueeze(0)  # [1, d, d]
    theta, phi = layer.theta.unsqueeze(1), layer.phi.unsqueeze(1)  # [E, 1, L, n / 2]
    # Row j of an expert is its matrix times the unit vector e_j.
    rows = config.rotation_in.apply(basis, theta.cos(), theta.sin())  # [E, d, d]
    rows = rows @ ternary(layer.up, per_row=config.gamma_per_row).T  # [E, d, F]
    return config.rotation_out.apply(rows, phi.cos(), phi.sin())


def cosines(matrices: Tensor) -> NDArray[np.float64]:
    """Cosines [E, E] between matrices [E, m, n], each flattened."""
    flat = matrices.detach().double().flatten(1)
    unit = flat / flat.norm(dim=1, keepdim=True)
    cosine: NDArray[np.float64] = (unit @ unit.T).numpy()
    return cosine


def figure_5(found: Mapping[str, Similarity]) -> Table:
    """The rows of Figure 5: of each named model what was measured."""
    rows = []
    for name, each in found.items():
        key = f"figure5.{re.sub('[^a-z0-9]+', '-', name.lower())}"
        what = f"{name}: mean cosine of two experts"
        rows.append(Row(f"{key}.mean", what, "cosine", None, None, None, _MEAN_WHY, each.mean))
        what, why = f"{name}: largest by magnitude", _LARGEST_WHY
        rows.append(Row(f"{key}.largest", what, "cosine", None, None, None, why, each.largest))
    note = (
        "Cosines between the experts' effective matrices B(phi_i) W_hat B(theta_i), flattened; of "
        "StandardMoE between its W1_i. GELU, which lies between W_hat and B(phi_i), and the shared "
        "W_down are left out. `before training` are fresh weights of the same configuration, `the "
        "papers' start` the same with angles of N(0, 0.01^2). What the figure prints "
        "is not known to us. A public summary of a later version of ButterflyMoE tells of "
        "diversity 0.87, and of 0.912 for StandardMoE, in models that are not published; it does "
        "not define diversity."
    )
    return Table("figure5", "Figure 5: how alike experts are", note, tuple(rows), "similarity.png")


_MEAN_WHY = "Without rotations it would be 1: W_hat is shared."
_LARGEST_WHY = "1 or -1 would be one expert twice, 0 are experts at right angles."
