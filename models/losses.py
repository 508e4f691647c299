"""Training loss: cross entropy, load balance, and spatial smoothness of the gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossTerms:
    """The total, with its gradient, and its terms; ``eq8`` is reported and not trained."""

    total: Tensor
    cross_entropy: Tensor
    balance: Tensor
    smoothness: Tensor
    eq8: Tensor


def expert_shares(logits: Tensor, top_k: int) -> Tensor:
    """f_i: the part of all (token, chosen expert) pairs that expert i gets, [E]; no gradient."""
    experts = logits.topk(top_k, dim=-1).indices.flatten()
    return torch.bincount(experts, minlength=logits.shape[-1]).to(logits.dtype) / experts.numel()


def switch_balance(logits: Tensor, top_k: int) -> Tensor:
    """E * sum_i f_i * mean p_i for gate logits [..., E]: 1 where the load is even."""
    p = logits.softmax(dim=-1).flatten(0, -2).mean(dim=0)
    return logits.shape[-1] * (expert_shares(logits, top_k) * p).sum()


def eq8_balance(logits: Tensor, top_k: int) -> Tensor:
    """E * sum_i f_i^2, ButterflyViT's equation 8: it counts tokens, so it has no gradient."""
    return logits.shape[-1] * expert_shares(logits, top_k).square().sum()


def spatial_smoothness(logits: Tensor, grid: int) -> Tensor:
    """Mean squared difference of the gate logits of patches that share an edge.

    logits: [B, 1 + grid * grid, E]; the first token is the class token and has no neighbour.
    """
    patches = torch.unflatten(logits[:, 1:], 1, (grid, grid))  # [B, grid, grid, E]
    down = (patches[:, 1:] - patches[:, :-1]).square()
    right = (patches[:, :, 1:] - patches[:, :, :-1]).square()
    return (down.sum() + right.sum()) / max(1, down.numel() + right.numel())


def training_loss(
    outputs: Tensor,
    labels: Tensor,
    gates: Sequence[Tensor],
    *,
    top_k: int,
    grid: int | None,
    balance_weight: float = 0.05,
    smoothness_weight: float = 0.005,
    label_smoothing: float = 0.0,
) -> LossTerms:
    """Cross entropy + 0.05 balance + 0.005 smoothness, the last two averaged over MoE layers.

    outputs: [B, classes], labels: [B], gates: of each MoE layer the logits [B, 1 + grid^2, E], or
    of any tokens [..., E] where ``grid`` is None: these have no neighbours, and no smoothness.
    """
    cross_entropy = F.cross_entropy(outputs, labels, label_smoothing=label_smoothing)
    zero = torch.zeros((), dtype=outputs.dtype)
    balance = _mean([switch_balance(g, top_k) for g in gates], zero)
    smooth = [] if grid is None else [spatial_smoothness(g, grid) for g in gates]
    smoothness = _mean(smooth, zero)
    eq8 = _mean([eq8_balance(g, top_k) for g in gates], zero)
    total = cross_entropy + balance_weight * balance + smoothness_weight * smoothness
    return LossTerms(total, cross_entropy, balance, smoothness, eq8)


def _mean(values: list[Tensor], empty: Tensor) -> Tensor:
    return torch.stack(values).mean() if values else empty
