"""Training on images: the papers' loss, on images that are shifted a little."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..compiler.errors import BadInput
from .blocks import experts_a_token
from .butterfly import ButterflyConfig
from .checkpoint import save_checkpoint
from .criteria import measure, percent_right
from .data import Split
from .losses import LossTerms, training_loss
from .trainer import Task, TrainConfig
from .vit import ViT, ViTConfig


@dataclass(frozen=True)
class ImageTraining(TrainConfig):
    """A training of a ViT. ``shift``: pixels each way."""

    model: ViTConfig
    smoothness_weight: float = 0.005
    shift: int = 1


class ImageTask(Task[ViT]):
    """Train on every image once an epoch; the rest short of a batch is left out.

    ``with_images`` puts the calibration and test images into the checkpoint. Raises BadInput for
    fewer images than a batch.
    """

    def __init__(self, config: ImageTraining, data: Split, *, with_images: bool = False) -> None:
        if len(data.train.images) < config.batch:
            raise BadInput(
                f"{len(data.train.images)} training images, "
                f"wanted at least one batch of {config.batch}",
                help="give more images, or a smaller batch",
            )
        self.config: ImageTraining = config
        self.data = data
        self.with_images = with_images
        self.images = torch.from_numpy(data.train.floats())
        self.labels = torch.from_numpy(data.train.labels)

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return len(self.images) // self.config.batch

    def make_model(self) -> ViT:
        """The ViT as it starts."""
        return ViT(self.config.model)

    def batches(self, random: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [B, C, H, W], shifted, and labels [B]."""
        batch = self.config.batch
        order = torch.randperm(len(self.images), generator=random)
        for step in range(self.steps):
            index = order[step * batch : (step + 1) * batch]
            yield shifted(self.images[index], self.config.shift, random), self.labels[index]

    def loss(self, model: ViT, inputs: Tensor, labels: Tensor) -> LossTerms:
        """Cross entropy, balance, and smoothness of the gates over the patches."""
        outputs, gates = model.with_gates(inputs)
        return training_loss(
            outputs,
            labels,
            gates,
            top_k=experts_a_token(self.config.model.mlp),
            grid=self.config.model.grid,
            balance_weight=self.config.balance_weight,
            smoothness_weight=self.config.smoothness_weight,
        )

    def figures(self, model: ViT, *, final: bool) -> dict[str, float]:
        """Percent right of the test set, and for a ButterflyViT what its rotations are worth."""
        test = self.data.test
        images, labels = torch.from_numpy(test.floats()), torch.from_numpy(test.labels)
        if isinstance(model.config.mlp, ButterflyConfig) and len(images) <= 1000:
            figures = asdict(measure(model, images, labels))
        else:
            was_training = model.training
            with torch.no_grad():
                parts = [model.eval()(part) for part in torch.split(images, 500)]
            model.train(was_training)
            figures = {"accuracy": percent_right(torch.cat(parts), labels)}
        return {key: round(value, 2) for key, value in figures.items()}

    def write(self, path: Path, model: ViT, notes: dict[str, Any]) -> None:
        """Write the checkpoint, with its images where they are wanted."""
        parts = {"calibration": self.data.calibration, "test": self.data.test}
        save_checkpoint(path, model, images=parts if self.with_images else None, notes=notes)


def shifted(images: Tensor, by: int, random: torch.Generator) -> Tensor:
    """Each image of [B, C, H, W] moved by up to ``by`` pixels each way; black moves in."""
    if by == 0:
        return images
    count, _, height, width = images.shape
    padded = F.pad(images, (by, by, by, by))
    top, left = torch.randint(0, 2 * by + 1, (2, count, 1, 1), generator=random).unbind()
    rows = top + torch.arange(height).unsqueeze(1)  # [B, H, 1]
    columns = left + torch.arange(width)  # [B, 1, W]
    batch = torch.arange(count).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[batch, rows, columns].permute(0, 3, 1, 2).contiguous()
