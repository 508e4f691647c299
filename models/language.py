"""A byte-level language model whose MLPs are ButterflyMoE, StandardMoE, or dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compiler.errors import BadInput, UsageError
from .blocks import Block, Memory, MlpConfig, Slots, Turns, check_widths, mlp_as_dict, mlp_from_dict
from .butterfly import ButterflyConfig, ButterflyMoE
from .standard import StandardMoE

BYTES = 256


def _default_mlp() -> ButterflyConfig:
    return ButterflyConfig(d_model=128, d_ff=512, gate="topk_softmax")


@dataclass(frozen=True)
class LanguageConfig:
    """A pre-norm decoder over bytes, with rotary positions and a class for each byte.

    Rotary positions tell distances from the first step on; with learned ones, two million bytes
    are hardly enough to learn which byte is the one before. ``context``: bytes that are seen at
    once at most. ``embedding_std``: spread of the embeddings at the start.
    """

    context: int = 256
    d_model: int = 128
    heads: int = 4
    layers: int = 6
    embedding_std: float = 0.1
    mlp: MlpConfig = field(default_factory=_default_mlp)

    def __post_init__(self) -> None:
        if self.context < 1:
            raise UsageError(
                f"a context of {self.context} bytes", help="give a context of at least 1"
            )
        if self.d_model % (2 * self.heads):
            raise UsageError(
                f"{self.heads} heads of a width of {self.d_model}, whose channels turn in pairs",
                help="choose a number of heads that divides half of d_model",
            )
        check_widths("language model", self.d_model, self.heads, self.mlp)

    def as_dict(self) -> dict[str, Any]:
        """The configuration as plain data; ``from_dict`` reads it back."""
        return {**asdict(self), "mlp": mlp_as_dict(self.mlp)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LanguageConfig:
        """The configuration that ``as_dict`` wrote. KeyError or TypeError if it is none."""
        return cls(**{**data, "mlp": mlp_from_dict(data["mlp"])})


class LanguageModel(nn.Module):
    """Bytes to the logits of the byte that follows each."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.embed = nn.Embedding(BYTES, d)
        nn.init.normal_(self.embed.weight, std=config.embedding_std)
        turns = Turns.of(config.context, d // config.heads)
        self.register_buffer("cos", turns.cos, persistent=False)  # [context, d/heads/2]
        self.register_buffer("sin", turns.sin, persistent=False)
        self.blocks = nn.ModuleList(
            Block(d, config.heads, config.mlp, causal=True) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, BYTES, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, N, 256] of the byte after each of the bytes int64 [B, N], N <= context."""
        y, _ = self.with_gates(tokens)
        return y

    def with_gates(
        self, tokens: Tensor, memories: Sequence[Memory] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits [B, N, 256], and of each MoE layer the gate logits [B, N, E].

        With ``memories``, one a layer, the tokens follow those that are in them, and are added.
        Raises BadInput for tokens of another shape, or more than the context holds.
        """
        past = memories[0].tokens if memories else 0
        if tokens.dim() != 2 or not 1 <= tokens.shape[1] <= self.config.context - past:
            raise BadInput(
                f"bytes of shape {list(tokens.shape)} after {past}, wanted [batch, 1 to "
                f"{self.config.context - past}]",
                help=f"give [batch, bytes], all in all at most {self.config.context} bytes",
            )
        x = self.embed(tokens)  # [B, N, d]
        places = slice(past, past + tokens.shape[1])
        turns = Turns(self.cos[places], self.sin[places])
        gates: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            x, logits = block(x, turns, memories[number] if memories else None)
            if logits is not None:
                gates.append(logits)
        y: Tensor = self.head(self.norm(x))
        return y, gates

    def memories(self) -> list[Memory]:
        """An empty KV cache: the memory of each layer."""
        return [Memory() for _ in self.blocks]


class DecodeStep(nn.Module):
    """A language model that takes one byte at a time, with its KV cache as inputs and results.

    Every shape is fixed, so that it compiles like any model. ``model`` keeps its weights.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def empty(self) -> tuple[Tensor, Tensor]:
        """The keys and the values before the first byte, [layers, heads, context, d/heads] each."""
        config = self.model.config
        width = config.d_model // config.heads
        shape = config.layers, config.heads, config.context, width
        return torch.zeros(shape), torch.zeros(shape)

    def forward(
        self, byte: Tensor, place: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [1, 256] of what follows a byte, and keys and values with those of this byte.

        byte: int64 [1]; place: int64 [1], its place among the bytes that are seen, below the
        context; keys, values: what the byte before left, [layers, heads, context, d/heads].
        """
        model = self.model
        x = model.embed(byte).unsqueeze(0)  # [1, 1, d]
        turns = Turns(F.embedding(place, model.cos), F.embedding(place, model.sin))
        pairs = zip(keys.unbind(0), values.unbind(0), strict=True)
        slots = [Slots(place, key, value) for key, value in pairs]
        for block, slot in zip(model.blocks, slots, strict=True):
            x, _ = block(x, turns, slot)
        logits: Tensor = model.head(model.norm(x))[0]
        keys = torch.stack([slot.keys for slot in slots])
        return logits, keys, torch.stack([slot.values for slot in slots])


def active_parameters(model: LanguageModel) -> int:
    """How many numbers of the model one byte is computed with.

    Of the embeddings these are one row; of each layer the parameters of its chosen experts, not
    of the others; what experts share counts once, however many use it.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    total -= (BYTES - 1) * model.config.d_model
    for layer in model.modules():
        if isinstance(layer, ButterflyMoE):
            own = [layer.theta, layer.phi]
        elif isinstance(layer, StandardMoE):
            own = [layer.up, layer.up_bias, layer.down, layer.down_bias]
        else:
            continue
        idle = layer.config.experts - layer.config.top_k
        total -= idle * sum(parameter[0].numel() for parameter in own)
    return total
