"""Whether the rotations of a trained model matter: what is lost without them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from .butterfly import ButterflyMoE
from .losses import expert_shares
from .vit import ViT


@dataclass(frozen=True)
class Criteria:
    """Accuracies in percent on one image set; ``least_share`` is of the idlest expert anywhere."""

    accuracy: float
    zero_angles: float
    expert0_angles: float
    least_share: float

    @property
    def met(self) -> bool:
        """The demands on the shipped model, under which a wrong rotation cannot stay unseen."""
        return (
            self.accuracy >= 96.0
            and self.accuracy - self.zero_angles >= 10.0
            and self.accuracy - self.expert0_angles >= 2.0
            and self.least_share >= 3.0
        )


@torch.no_grad()
def measure(model: ViT, images: Tensor, labels: Tensor) -> Criteria:
    """The criteria of ``model``, which is not changed, on images [N, C, H, W]."""
    was_training = model.training
    outputs, gates = model.eval().with_gates(images)
    top_k = [m.config.top_k for m in model.modules() if isinstance(m, ButterflyMoE)]
    shares = [expert_shares(g, k).min().item() for g, k in zip(gates, top_k, strict=True)]
    result = Criteria(
        accuracy=percent_right(outputs, labels),
        zero_angles=percent_right(with_angles(model, zero=True)(images), labels),
        expert0_angles=percent_right(with_angles(model, zero=False)(images), labels),
        least_share=100.0 * min(shares),
    )
    model.train(was_training)
    return result


def with_angles(model: ViT, *, zero: bool) -> ViT:
    """A copy of ``model`` with all angles zero, or with expert 0's angles for every expert."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for layer in changed.modules():
            if isinstance(layer, ButterflyMoE):
                for angles in (layer.theta, layer.phi):
                    angles.copy_(torch.zeros_like(angles) if zero else angles[:1].clone())
    return changed


def percent_right(outputs: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent of class logits [N, classes]."""
    return 100.0 * (outputs.argmax(dim=-1) == labels).double().mean().item()
