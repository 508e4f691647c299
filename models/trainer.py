"""The training loop: AdamW with a cosine schedule, one resumable state file."""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compiler.errors import BadInput, Damaged, UsageError
from .blocks import DenseConfig
from .checkpoint import write_atomically
from .data import ImageSet
from .losses import LossTerms, training_loss
from .vit import ViT, ViTConfig

# What torch.load and the load_state_dict functions raise for a file that was cut or changed.
_BROKEN = (
    pickle.UnpicklingError,
    OSError,
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    EOFError,
)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that, with the data, decides the trained weights. ``shift``: pixels each way."""

    model: ViTConfig
    epochs: int
    batch: int = 64
    learning_rate: float = 1e-3
    angle_learning_rate: float = 1e-2
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    balance_weight: float = 0.05
    smoothness_weight: float = 0.005
    shift: int = 1
    seed: int = 0

    def as_json(self) -> str:
        """The configuration as text; two runs with the same text are the same run."""
        return json.dumps({**asdict(self), "model": self.model.as_dict()}, sort_keys=True)


class Trainer:
    """One training run. Interrupted after any epoch and resumed, it gives the same weights."""

    def __init__(self, config: TrainConfig, data: ImageSet) -> None:
        if len(data.images) < config.batch:
            raise BadInput(
                f"{len(data.images)} training images, wanted at least one batch of {config.batch}",
                help="give more images, or a smaller batch",
            )
        self.config = config
        self.images = torch.from_numpy(data.floats())
        self.labels = torch.from_numpy(data.labels)
        self.random = torch.Generator().manual_seed(config.seed)
        torch.manual_seed(config.seed)
        self.model = ViT(config.model)
        self.optimizer = make_optimizer(self.model, config)
        self.epoch = 0

    @property
    def done(self) -> bool:
        """Whether all epochs are trained."""
        return self.epoch >= self.config.epochs

    def train_epoch(self) -> Iterator[LossTerms]:
        """Train on every image once, a batch at a step; the rest short of a batch is left out."""
        config = self.config
        steps = len(self.images) // config.batch
        order = torch.randperm(len(self.images), generator=self.random)
        self.model.train()
        for step in range(steps):
            rate = schedule(self.epoch * steps + step, config.epochs * steps, config.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * rate
            yield self._step(order[step * config.batch : (step + 1) * config.batch])
        self.epoch += 1

    def _step(self, index: Tensor) -> LossTerms:
        config, mlp = self.config, self.config.model.mlp
        images = shifted(self.images[index], config.shift, self.random)
        outputs, gates = self.model.with_gates(images)
        terms = training_loss(
            outputs,
            self.labels[index],
            gates,
            top_k=1 if isinstance(mlp, DenseConfig) else mlp.top_k,
            grid=config.model.grid,
            balance_weight=config.balance_weight,
            smoothness_weight=config.smoothness_weight,
        )
        self.optimizer.zero_grad()
        terms.total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        return terms

    def save(self, path: Path) -> None:
        """Write the state of the run in one step."""
        buffer = io.BytesIO()
        state = {
            "config": self.config.as_json(),
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self.random.get_state(),
        }
        torch.save(state, buffer)
        write_atomically(path, buffer.getvalue())

    def resume(self, path: Path) -> None:
        """Go on where ``save`` left off. UsageError for another run's state, Damaged if broken."""
        if not path.is_file():
            raise UsageError(f"nothing to resume: no file '{path}'", help="start without --resume")
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            same = state["config"] == self.config.as_json()
            if same:
                self.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.random.set_state(state["random"])
                self.epoch = int(state["epoch"])
        except _BROKEN as e:
            raise Damaged(
                f"the saved state of the training cannot be read: {e}",
                where=str(path),
                help="remove it and start without --resume",
            ) from e
        if not same:
            raise UsageError(
                "the saved state belongs to a training with other settings",
                where=str(path),
                help="repeat the settings of that run, or choose another folder with -o",
            )


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; angles have their own rate and no decay: zero is no better an angle than another."""
    angles: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (angles if name.endswith((".theta", ".phi")) else others).append(parameter)
    groups = [
        {
            "params": others,
            "peak": config.learning_rate,
            "weight_decay": config.weight_decay,
        },
        {"params": angles, "peak": config.angle_learning_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]])


def schedule(step: int, steps: int, warmup: float) -> float:
    """Part of the peak learning rate: linear warm-up, then a cosine down to zero."""
    rise = min(1.0, (step + 1) / max(1.0, warmup * steps))
    return rise * 0.5 * (1.0 + math.cos(math.pi * step / steps))


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
