"""Text from a language model, byte by byte, with a KV cache or without one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from ..compiler.errors import BadInput
from .language import LanguageModel


def generate(
    model: LanguageModel,
    prompt: bytes,
    count: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    cached: bool = True,
) -> bytes:
    """The ``count`` bytes that ``stream`` gives first; errors as ``stream``."""
    return bytes(
        islice(stream(model, prompt, temperature=temperature, seed=seed, cached=cached), count)
    )


def stream(
    model: LanguageModel,
    prompt: bytes,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    cached: bool = True,
) -> Iterator[int]:
    """The bytes that follow ``prompt``, one after the other without end.

    Temperature 0 takes the likeliest byte, others draw from softmax(logits / temperature) with
    ``seed``. Without ``cached`` every byte is computed from all that it sees: the same bytes, as
    both see the window of `window_start`. Raises BadInput for an empty prompt or a negative
    temperature.
    """
    if not prompt or temperature < 0:
        raise BadInput(
            f"a prompt of {len(prompt)} bytes, temperature {temperature}",
            help="give at least one byte, and a temperature of 0 or more",
        )
    return _stream(model, list(prompt), temperature, seed, cached)


def window_start(seen: int, context: int) -> int:
    """The first of ``seen`` bytes that the next one is predicted from.

    All of them while they fit. Then the window jumps by half a context, and grows again: a cache
    has to be filled afresh only at a jump, since positions count from the window's start.
    """
    jump = (context + 1) // 2
    return max(0, -(-(seen - context) // jump)) * jump


def _stream(
    model: LanguageModel, seen: list[int], temperature: float, seed: int, cached: bool
) -> Iterator[int]:
    random = torch.Generator().manual_seed(seed)
    memories, begun = model.memories(), 0
    while True:
        start = window_start(len(seen), model.config.context)
        if start != begun:
            memories, begun = model.memories(), start
        known = start + memories[0].tokens if cached else start
        tokens = torch.tensor([seen[known:]])
        with torch.no_grad():
            logits, _ = model.with_gates(tokens, memories if cached else None)
        seen.append(_choose(logits[0, -1], temperature, random))
        yield seen[-1]


def _choose(logits: Tensor, temperature: float, random: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=random))
