"""AbsMean ternary weights with a straight-through gradient."""

from __future__ import annotations

from torch import Tensor

EPSILON = 1e-8


def absmean_scale(weight: Tensor, *, per_row: bool = False) -> Tensor:
    """gamma = mean |W|: a scalar, or one value a row with shape [rows, 1]."""
    return weight.abs().mean(dim=1, keepdim=True) if per_row else weight.abs().mean()


def ternary(weight: Tensor, *, per_row: bool = False) -> Tensor:
    """W_hat = gamma * round_clip(W / (gamma + 1e-8)): exactly -gamma, 0 or gamma each.

    The gradient passes straight through: d W_hat / d W = 1. The sum is written so that the
    straight-through term is exactly zero; ``W + (W_hat - W)`` would round differently.
    """
    gamma = absmean_scale(weight, per_row=per_row)
    quantised = gamma * (weight / (gamma + EPSILON)).round().clamp(-1.0, 1.0)
    return quantised.detach() + (weight - weight.detach())
