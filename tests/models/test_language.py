"""The language model: causal, of every kind of layer, with a memory that changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from butterflyc.compiler.errors import BadInput, ButterflycError, UsageError
from butterflyc.models.blocks import DenseConfig, MlpConfig, experts_a_token
from butterflyc.models.butterfly import ButterflyConfig, linear_form
from butterflyc.models.language import LanguageConfig, LanguageModel, active_parameters
from butterflyc.models.standard import StandardConfig

LAYER = ButterflyConfig(d_model=16, d_ff=32, experts=4, gate="topk_softmax", angle_std=0.5)
SMALL = LanguageConfig(context=12, d_model=16, heads=2, layers=2, embedding_std=1.0, mlp=LAYER)
KINDS: list[MlpConfig] = [
    LAYER,
    linear_form(16, 16, experts=4, layers_in=4, layers_out=4, angle_std=0.5),
    StandardConfig(d_model=16, d_ff=24, experts=4),
    DenseConfig(d_model=16, d_ff=24),
]


def small(mlp: MlpConfig = LAYER) -> LanguageModel:
    """Two layers of width 16 with weights of seed 0."""
    torch.manual_seed(0)
    return LanguageModel(replace(SMALL, mlp=mlp)).eval()


def some_bytes(count: int = 12) -> torch.Tensor:
    """Two rows of random bytes."""
    return torch.randint(256, (2, count), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("mlp", KINDS)
def test_no_byte_sees_a_later_one(mlp: MlpConfig) -> None:
    """Another byte at place 7 changes the logits from there on, and none before."""
    model, tokens = small(mlp), some_bytes()
    other = tokens.clone()
    other[:, 7] = (other[:, 7] + 1) % 256
    first, second = model(tokens), model(other)
    assert first.shape == (2, 12, 256)
    torch.testing.assert_close(first[:, :7], second[:, :7])
    assert (first[:, 7:] != second[:, 7:]).any(dim=-1).all()


@torch.no_grad()
@pytest.mark.parametrize("mlp", KINDS)
@pytest.mark.parametrize("parts", [[12], [1] * 12, [5, 4, 3], [1, 11]])
def test_a_memory_changes_nothing(mlp: MlpConfig, parts: list[int]) -> None:
    """However a text is cut, with a KV cache its logits are those of the whole."""
    model, tokens = small(mlp), some_bytes()
    memories = model.memories()
    pieces = [model.with_gates(part, memories)[0] for part in torch.split(tokens, parts, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens))
    assert [memory.tokens for memory in memories] == [12, 12]


@pytest.mark.parametrize("mlp", KINDS)
def test_configuration_survives_plain_data(mlp: MlpConfig) -> None:
    """from_dict(as_dict) is the same configuration; gates come from each layer that has experts."""
    config = replace(SMALL, mlp=mlp)
    assert LanguageConfig.from_dict(config.as_dict()) == config
    _, gates = small(mlp).with_gates(some_bytes())
    wanted = [] if isinstance(mlp, DenseConfig) else [(2, 12, 4)] * 2
    assert [tuple(logits.shape) for logits in gates] == wanted


def test_active_parameters_are_those_of_one_byte() -> None:
    """All but idle experts and the other rows of the table; the default has over a million."""
    model = small()
    total = sum(parameter.numel() for parameter in model.parameters())
    idle_rows = 255 * 16
    idle_angles = 2 * 2 * (2 * 8 + 2 * 16)  # two layers, two experts, L = 2 on 16 and on 32
    assert active_parameters(model) == total - idle_rows - idle_angles
    dense = small(DenseConfig(d_model=16, d_ff=24))
    numbers = sum(parameter.numel() for parameter in dense.parameters())
    assert active_parameters(dense) == numbers - idle_rows
    standard = small(StandardConfig(d_model=16, d_ff=24, experts=3, top_k=2))
    numbers = sum(parameter.numel() for parameter in standard.parameters())
    assert active_parameters(standard) == numbers - idle_rows - 2 * (2 * 16 * 24 + 16 + 24)
    assert active_parameters(LanguageModel(LanguageConfig())) > 1_000_000
    assert [experts_a_token(mlp) for mlp in KINDS] == [2, 2, 2, 1]


def test_exports_whole() -> None:
    """torch.export takes the model in one piece, with its attention whole, and the same values."""
    model, tokens = small(), some_bytes()[:1]
    program = torch.export.export(model, (tokens,), strict=False).run_decompositions({})
    assert torch.equal(program.module()(tokens), model(tokens))
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("aten.scaled_dot_product_attention.default") == SMALL.layers


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: LanguageConfig(context=0), UsageError, "a context of 0 bytes"),
        (lambda: LanguageConfig(heads=3), UsageError, "3 heads of a width of 128"),
        (lambda: LanguageConfig(d_model=64), UsageError, "128 to 128 in a language model of 64"),
        (lambda: small()(torch.zeros(12, dtype=torch.int64)), BadInput, "1 to 12"),
        (lambda: small()(torch.zeros(1, 13, dtype=torch.int64)), BadInput, "at most|1 to 12"),
    ],
)
def test_impossible_models_are_refused(make: Any, error: type[ButterflycError], says: str) -> None:
    """A model that cannot be, or text that does not fit, is refused with what to do."""
    with pytest.raises(error, match=says) as caught:
        make()
    assert caught.value.help


def test_a_full_memory_takes_no_more() -> None:
    """Bytes beyond the context are refused, and the error counts those that are remembered."""
    model = small()
    memories = model.memories()
    model.with_gates(some_bytes(), memories)
    with pytest.raises(BadInput, match="after 12"):
        model.with_gates(some_bytes(1), memories)
