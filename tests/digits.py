"""The trained digits model, and one like it that no training made."""

from __future__ import annotations

import torch

from butterflyc.models.checkpoint import load_digits
from butterflyc.models.vit import ViT


def digits_model(turned: bool) -> ViT:
    """The trained model; ``turned``, a copy with angles of N(0, 0.5)."""
    model = load_digits()
    if turned:
        torch.manual_seed(0)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "theta" in name or "phi" in name:
                    value.normal_(0, 0.5)
    return model
