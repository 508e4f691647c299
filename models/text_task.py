"""Training on text: the byte that follows each, in windows drawn at random."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..compiler.errors import BadInput
from .blocks import experts_a_token
from .checkpoint import save_checkpoint
from .language import LanguageConfig, LanguageModel, active_parameters
from .losses import LossTerms, training_loss
from .ngram import Bytes, NGram
from .text import TextSplit
from .trainer import Task, TrainConfig

# Windows that are computed at once where nothing is trained, and that a quick figure takes.
_AT_ONCE = 16
_QUICK_WINDOWS = 64
_NGRAM_ORDER = 3


@dataclass(frozen=True)
class TextTraining(TrainConfig):
    """A training of a language model. An epoch is ``epoch_steps`` steps, whatever the text."""

    model: LanguageConfig
    epoch_steps: int = 100

    @property
    def bytes_seen(self) -> int:
        """Bytes that are predicted in the whole of the training."""
        return self.epochs * self.epoch_steps * self.batch * self.model.context


class TextTask(Task[LanguageModel]):
    """Train on windows of the text. Raises BadInput for a text that is shorter than a window."""

    def __init__(self, config: TextTraining, data: TextSplit) -> None:
        shortest = min(len(data.train), len(data.held_out))
        if shortest <= config.model.context:
            raise BadInput(
                f"{shortest} bytes of text for windows of {config.model.context}",
                help="give a longer text, or a shorter context",
            )
        self.config: TextTraining = config
        self.data = data
        self.text = torch.from_numpy(data.train.astype(np.int64))

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return self.config.epoch_steps

    def make_model(self) -> LanguageModel:
        """The language model as it starts."""
        return LanguageModel(self.config.model)

    def batches(self, random: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Bytes [B, context], and the byte after each of them."""
        batch, context = self.config.batch, self.config.model.context
        for _ in range(self.steps):
            starts = torch.randint(len(self.text) - context, (batch, 1), generator=random)
            windows = self.text[starts + torch.arange(context + 1)]
            yield windows[:, :-1], windows[:, 1:]

    def loss(self, model: LanguageModel, inputs: Tensor, labels: Tensor) -> LossTerms:
        """Cross entropy and balance; bytes have no neighbours in a plane."""
        outputs, gates = model.with_gates(inputs)
        return training_loss(
            outputs.flatten(0, 1),
            labels.flatten(),
            gates,
            top_k=experts_a_token(self.config.model.mlp),
            grid=None,
            balance_weight=self.config.balance_weight,
        )

    def figures(self, model: LanguageModel, *, final: bool) -> dict[str, float]:
        """Bits per byte of held-out text: of 64 windows of it, or of all of it where ``final``.

        The latter beside the figures of an n-gram model that has seen all the training text.
        """
        if not final:
            quick = bits_per_byte(model, self.data.held_out, windows=_QUICK_WINDOWS)
            return {"bits_per_byte": round(quick, 4)}
        bits = bits_per_byte(model, self.data.held_out)
        return {
            "bits_per_byte": round(bits, 4),
            "perplexity_per_byte": round(2**bits, 4),
            "ngram_bits_per_byte": round(self.ngram_bits, 4),
        }

    @cached_property
    def ngram_bits(self) -> float:
        """Bits per byte of held-out text by an n-gram model that looks back on three bytes."""
        return NGram(self.data.train, _NGRAM_ORDER).bits_per_byte(self.data.held_out)

    def write(self, path: Path, model: LanguageModel, notes: dict[str, Any]) -> None:
        """Write the checkpoint, with windows of the training text to calibrate on."""
        text = {
            "bytes_seen": self.config.bytes_seen,
            "active_parameters": active_parameters(model),
            "corpus": self.data.digest,
            "corpus_bytes": [len(self.data.train), len(self.data.held_out)],
        }
        windows = self.data.calibration(self.config.model.context)
        save_checkpoint(path, model, text={"calibration": windows}, notes={**notes, "text": text})


@torch.no_grad()
def bits_per_byte(model: LanguageModel, text: Bytes, *, windows: int | None = None) -> float:
    """Mean -log2 p of each byte of ``text`` after the first, in windows of the model's context.

    Windows overlap by half: each byte counts once, and is predicted from at least half a context
    (from all that is before it in the first window). ``windows``: of how many windows after the
    first, evenly spaced, only the new half counts; without it all of the text does.
    """
    was_training, context = model.training, min(model.config.context, len(text) - 1)
    model.eval()
    tokens = torch.from_numpy(text.astype(np.int64))
    starts, fresh = _windows(len(tokens), context, max(1, context // 2))
    if windows is not None:
        last = len(starts) - 1
        chosen = torch.linspace(min(1, last), last, windows).long()
        starts, fresh = starts[chosen], fresh[chosen]
    total = 0.0
    for some, new in zip(torch.split(starts, _AT_ONCE), torch.split(fresh, _AT_ONCE), strict=True):
        window = tokens[some[:, None] + torch.arange(context + 1)]
        losses = F.cross_entropy(
            model(window[:, :-1]).transpose(1, 2), window[:, 1:], reduction="none"
        )
        total += losses[torch.arange(context) >= context - new[:, None]].sum().item()
    model.train(was_training)
    return total / int(fresh.sum()) / math.log(2)


def _windows(length: int, context: int, stride: int) -> tuple[Tensor, Tensor]:
    """Starts of windows over ``length`` bytes, and how many bytes at the end of each are new."""
    last = length - 1 - context
    starts = torch.tensor([*range(0, last, stride), last])
    return starts, torch.diff(starts, prepend=torch.tensor([-context]))
