"""Text from a language model, byte by byte: with a KV cache, without, or by a compiled step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from ..compiler.errors import BadInput
from .language import DecodeStep, LanguageModel

# What `DecodeStep` computes: itself, or the program that was compiled of it.
Step = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def generate(
    model: LanguageModel,
    prompt: bytes,
    count: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    cached: bool = True,
    step: Step | None = None,
) -> bytes:
    """The ``count`` bytes that ``stream`` gives first; errors as ``stream``."""
    written = stream(model, prompt, temperature=temperature, seed=seed, cached=cached, step=step)
    return bytes(islice(written, count))


def stream(
    model: LanguageModel,
    prompt: bytes,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    cached: bool = True,
    step: Step | None = None,
) -> Iterator[int]:
    """The bytes that follow ``prompt``, one after the other without end.

    Temperature 0 takes the likeliest byte, others draw from softmax(logits / temperature) with
    ``seed``. Without ``cached`` every byte is computed from all that it sees; ``step`` computes a
    byte at a time, from slots of a fixed size. All give the same bytes, since all see the window
    of `window_start`. Raises BadInput for an empty prompt or a negative temperature.
    """
    if not prompt or temperature < 0:
        raise BadInput(
            f"a prompt of {len(prompt)} bytes, temperature {temperature}",
            help="give at least one byte, and a temperature of 0 or more",
        )
    reader = _Stepped(model, step) if step else _Cached(model) if cached else _Whole(model)
    return _stream(reader, model.config.context, list(prompt), temperature, seed)


def window_start(seen: int, context: int) -> int:
    """The first of ``seen`` bytes that the next one is predicted from.

    All of them while they fit. Then the window jumps by half a context, and grows again: a cache
    has to be filled afresh only at a jump, since positions count from the window's start.
    """
    jump = (context + 1) // 2
    return max(0, -(-(seen - context) // jump)) * jump


def _stream(
    reader: _Reader, context: int, seen: list[int], temperature: float, seed: int
) -> Iterator[int]:
    random = torch.Generator().manual_seed(seed)
    while True:
        with torch.no_grad():
            logits = reader.logits(seen, window_start(len(seen), context))
        seen.append(_choose(logits, temperature, random))
        yield seen[-1]


def _choose(logits: Tensor, temperature: float, random: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=random))


class _Reader(Protocol):
    def logits(self, seen: list[int], start: int) -> Tensor:
        """Logits [256] of the byte after ``seen``, of which those from ``start`` on count."""


class _Whole:
    """Computes all of the window for each byte."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def logits(self, seen: list[int], start: int) -> Tensor:
        return self.model(torch.tensor([seen[start:]]))[0, -1]


class _Cached:
    """Computes what is new of the window, in one go."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.memories, self.start = model, model.memories(), 0

    def logits(self, seen: list[int], start: int) -> Tensor:
        if start != self.start:
            self.memories, self.start = self.model.memories(), start
        fresh = seen[start + self.memories[0].tokens :]
        logits, _ = self.model.with_gates(torch.tensor([fresh]), self.memories)
        return logits[0, -1]


class _Stepped:
    """Computes what is new of the window, a byte at a time."""

    def __init__(self, model: LanguageModel, step: Step) -> None:
        self.step, self.empty = step, DecodeStep(model).empty()
        self.keys, self.values = self.empty
        self.start = self.known = 0

    def logits(self, seen: list[int], start: int) -> Tensor:
        if start != self.start:
            self.keys, self.values = self.empty
            self.start = self.known = start
        while self.known < len(seen):
            byte, place = torch.tensor([seen[self.known]]), torch.tensor([self.known - start])
            logits, self.keys, self.values = self.step(byte, place, self.keys, self.values)
            self.known += 1
        return logits[0]
