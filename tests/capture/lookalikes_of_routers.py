"""What is nearly a Butterfly layer for the way in which its experts are chosen or weighed."""

from __future__ import annotations

import torch
from torch import Tensor

from .forms_of_routers import BestByThreshold
from .test_recognise_styles import WIDTH


class OwnDownByThreshold(BestByThreshold):
    """A threshold at the largest score, in front of experts with matrices of their own."""

    def expert(self, x: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        own = self.extra[:, :WIDTH, None] * self.down.weight  # [E, d, F]
        return torch.einsum("edf,etf->etd", own, self.hidden(x, theta, phi))
