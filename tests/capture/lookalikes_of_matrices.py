"""What is nearly a Butterfly layer, but for its shared matrix."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .test_recognise_styles import Gathered


class FiveLevels(Gathered):
    """Weights of five levels, -2 to 2."""

    def multiply(self, x: Tensor) -> Tensor:
        gamma = self.up.abs().mean()
        return F.linear(x, gamma * (self.up / (gamma + 1e-8)).round().clamp(-2, 2))


class DenseSubstrate(Gathered):
    """A shared matrix that is not ternary."""

    def multiply(self, x: Tensor) -> Tensor:
        return F.linear(x, self.up)


class TwoScales(Gathered):
    """One scale of positive weights, another of negative ones."""

    def multiply(self, x: Tensor) -> Tensor:
        plus, minus = (self.up > 0.1).to(x.dtype), (self.up < -0.1).to(x.dtype)
        return 0.2 * F.linear(x, plus) - 0.3 * F.linear(x, minus)


class SumOfMasks(Gathered):
    """Two products with zeros and ones added, which makes weights of 0, 1 and 2."""

    def multiply(self, x: Tensor) -> Tensor:
        some, more = (self.up > 0.1).to(x.dtype), (self.up > -0.1).to(x.dtype)
        return 0.2 * (F.linear(x, some) + F.linear(x, more))
