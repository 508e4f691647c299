"""The training loop: AdamW with a cosine schedule, one resumable state file."""

from __future__ import annotations

import io
import json
import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..compiler.errors import Damaged, UsageError
from .checkpoint import write_atomically
from .losses import LossTerms

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
Model = TypeVar("Model", bound=nn.Module)


class ModelConfig(Protocol):
    """The configuration of a model: plain data can be made of it."""

    def as_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class TrainConfig:
    """Everything that, with the data, decides the trained weights, whatever the model is.

    An ``angle_learning_rate`` of zero freezes the rotations as they were at the start.
    """

    model: ModelConfig
    epochs: int
    batch: int = 64
    learning_rate: float = 1e-3
    angle_learning_rate: float = 1e-2
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    balance_weight: float = 0.05
    seed: int = 0

    def as_json(self) -> str:
        """The configuration as text; two runs with the same text are the same run."""
        return json.dumps({**asdict(self), "model": self.model.as_dict()}, sort_keys=True)


class Task(ABC, Generic[Model]):
    """What is trained: a model, the batches of an epoch, their loss, and what is measured."""

    config: TrainConfig

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps an epoch."""

    @abstractmethod
    def make_model(self) -> Model:
        """The model as it starts, from torch's own random numbers."""

    @abstractmethod
    def batches(self, random: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of each step of an epoch, drawn with ``random`` as they are taken."""

    @abstractmethod
    def loss(self, model: Model, inputs: Tensor, labels: Tensor) -> LossTerms:
        """The loss of one batch, and its terms."""

    @abstractmethod
    def figures(self, model: Model, *, final: bool) -> dict[str, float]:
        """What the model is worth on data that it is not trained on; quickly if not ``final``."""

    @abstractmethod
    def write(self, path: Path, model: Model, notes: dict[str, Any]) -> None:
        """Write the checkpoint, with whatever data belongs into it."""


class Trainer(Generic[Model]):
    """One training run. Interrupted after any epoch and resumed, it gives the same weights."""

    def __init__(self, task: Task[Model]) -> None:
        self.task = task
        self.config = task.config
        self.random = torch.Generator().manual_seed(self.config.seed)
        torch.manual_seed(self.config.seed)
        self.model: Model = task.make_model()
        self.optimizer = make_optimizer(self.model, self.config)
        self.epoch = 0
        self.curve: list[dict[str, float]] = []  # of each epoch what ``record`` was told

    @property
    def done(self) -> bool:
        """Whether all epochs are trained."""
        return self.epoch >= self.config.epochs

    def train_epoch(self) -> Iterator[LossTerms]:
        """Train on the batches of one epoch, a batch at a step."""
        config, steps = self.config, self.task.steps
        self.model.train()
        for step, (inputs, labels) in enumerate(self.task.batches(self.random)):
            rate = schedule(self.epoch * steps + step, config.epochs * steps, config.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * rate
            yield self._step(inputs, labels)
        self.epoch += 1

    def record(self, figures: dict[str, float]) -> None:
        """Keep figures of the epoch that was just trained, as a point of the training curve."""
        self.curve.append({"epoch": self.epoch, **figures})

    def _step(self, inputs: Tensor, labels: Tensor) -> LossTerms:
        terms = self.task.loss(self.model, inputs, labels)
        self.optimizer.zero_grad()
        terms.total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        return terms

    def save(self, path: Path) -> None:
        """Write the state of the run in one step."""
        buffer = io.BytesIO()
        state = {
            "config": self.config.as_json(),
            "epoch": self.epoch,
            "curve": self.curve,
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
                self.epoch, self.curve = int(state["epoch"]), list(state["curve"])
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
    """AdamW; angles have their own rate and no decay: zero is no better an angle than another.

    At an angle rate of zero they take no gradient, and are no part of what is clipped.
    """
    angles: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (angles if name.endswith((".theta", ".phi")) else others).append(parameter)
    if config.angle_learning_rate == 0:
        for parameter in angles:
            parameter.requires_grad_(False)
        angles = []
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
