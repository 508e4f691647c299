"""Generation: a KV cache changes no byte, a seed decides them, and the window jumps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.errors import BadInput
from butterflyc.models.blocks import DenseConfig, MlpConfig
from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.generation import generate, stream, window_start
from butterflyc.models.language import DecodeStep, LanguageConfig, LanguageModel

LAYER = ButterflyConfig(d_model=16, d_ff=32, experts=4, gate="topk_softmax", angle_std=1.0)


def model(mlp: MlpConfig = LAYER) -> LanguageModel:
    """Two layers that see 10 bytes, with weights of seed 0."""
    torch.manual_seed(0)
    config = LanguageConfig(context=10, d_model=16, heads=2, layers=2, embedding_std=1.0, mlp=mlp)
    return LanguageModel(config).eval()


@pytest.mark.parametrize("mlp", [LAYER, DenseConfig(d_model=16, d_ff=32)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_cache_changes_no_byte(mlp: MlpConfig, temperature: float) -> None:
    """40 bytes, four times what fits the window, are the same with a KV cache, without, and by
    steps of one byte."""
    lm = model(mlp)
    ways: list[dict[str, Any]] = [{}, {"cached": False}, {"step": DecodeStep(lm)}]
    made = [generate(lm, b"abc", 40, temperature=temperature, **way) for way in ways]
    assert len(made[0]) == 40
    assert made[0] == made[1] == made[2]


def test_greedy_takes_the_likeliest() -> None:
    """At temperature 0 the byte is the one of the largest logit, and no seed matters."""
    lm = model()
    with torch.no_grad():
        wanted = int(lm(torch.tensor([list(b"abcd")]))[0, -1].argmax())
    assert next(stream(lm, b"abcd")) == next(stream(lm, b"abcd", seed=7)) == wanted


def test_a_seed_decides() -> None:
    """The same seed draws the same bytes, another one others; a low temperature is greedy."""
    lm = model()
    drawn = [generate(lm, b"abc", 20, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert generate(lm, b"abc", 20, temperature=1e-4) == generate(lm, b"abc", 20)


def test_a_long_prompt_is_cut_at_the_front() -> None:
    """What is out of the window does not matter; what is in it does."""
    lm = model()
    start = window_start(23, 10)
    ends = bytes(range(start, 23))
    assert generate(lm, bytes(start) + ends, 5) == generate(lm, b"x" * start + ends, 5)
    assert 23 - start <= 10


@given(st.integers(1, 300), st.integers(1, 40))
def test_windows_fit_and_keep_half(seen: int, context: int) -> None:
    """A window holds at most the context, at least half of it once full, and never goes back."""
    size = seen - window_start(seen, context)
    assert min(seen, context // 2 + 1) <= size <= context
    assert window_start(seen, context) <= window_start(seen + 1, context)


@pytest.mark.parametrize(("prompt", "temperature"), [(b"", 1.0), (b"a", -1.0)])
def test_impossible_requests_are_refused(prompt: bytes, temperature: float) -> None:
    """No prompt, and a negative temperature, are refused at once."""
    with pytest.raises(BadInput, match="a prompt of"):
        stream(model(), prompt, temperature=temperature)
