"""Transformer blocks whose MLP is a ButterflyMoE, a StandardMoE, or dense: what models share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compiler.errors import UsageError
from .butterfly import ButterflyConfig, ButterflyMoE, MaskedLoopButterflyMoE
from .standard import StandardConfig, StandardMoE


@dataclass(frozen=True)
class DenseConfig:
    """The ordinary MLP: W2 GELU(W1 x + b1) + b2."""

    d_model: int = 256
    d_ff: int = 1024


MlpConfig = ButterflyConfig | StandardConfig | DenseConfig
MLP_CONFIGS: dict[str, type[ButterflyConfig] | type[StandardConfig] | type[DenseConfig]] = {
    "butterfly": ButterflyConfig,
    "standard": StandardConfig,
    "dense": DenseConfig,
}


def mlp_as_dict(config: MlpConfig) -> dict[str, Any]:
    """The configuration as plain data, its kind in it; ``mlp_from_dict`` reads it back."""
    kind = next(name for name, kind in MLP_CONFIGS.items() if type(config) is kind)
    return {"kind": kind, **asdict(config)}


def mlp_from_dict(data: dict[str, Any]) -> MlpConfig:
    """The configuration that ``mlp_as_dict`` wrote. KeyError or TypeError if it is none."""
    kind = MLP_CONFIGS[data["kind"]]
    return kind(**{name: value for name, value in data.items() if name != "kind"})


def experts_a_token(config: MlpConfig) -> int:
    """How many experts each token goes to: top_k, and 1 where the MLP is dense."""
    return 1 if isinstance(config, DenseConfig) else config.top_k


def check_widths(what: str, d_model: int, heads: int, mlp: MlpConfig) -> None:
    """UsageError where heads do not divide the width of ``what``, or its MLP has another width."""
    if d_model % heads:
        raise UsageError(
            f"{heads} heads do not divide a width of {d_model}",
            help="choose a number of heads that divides d_model",
        )
    width_out = mlp.d_out if isinstance(mlp, ButterflyConfig) else mlp.d_model
    if not mlp.d_model == width_out == d_model:
        raise UsageError(
            f"an MLP from width {mlp.d_model} to {width_out} in a {what} of {d_model}",
            help=f"give the MLP and the {what} the same d_model (linear form: d_ff = d_model too)",
        )


class DenseMLP(nn.Module):
    """W2 GELU(W1 x + b1) + b2."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff)
        self.down = nn.Linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., d_model], same shape."""
        y: Tensor = self.down(F.gelu(self.up(x)))
        return y


class Memory:
    """Keys and values of the tokens that one attention layer has seen: its KV cache."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None  # [B, heads, tokens, d/heads], as the values
        self.values: Tensor | None = None

    @property
    def tokens(self) -> int:
        """How many tokens are remembered."""
        return 0 if self.keys is None else self.keys.shape[2]

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Remember those of N new tokens [B, heads, N, d/heads]: all keys and values so far, and
        which of these each new token sees, [N, tokens], or None for all."""
        past, new = self.tokens, keys.shape[2]
        if self.keys is not None and self.values is not None:
            keys = torch.cat((self.keys, keys), dim=2)
            values = torch.cat((self.values, values), dim=2)
        self.keys, self.values = keys, values
        seen = None if new == 1 else torch.ones(new, past + new, dtype=torch.bool).tril(past)
        return keys, values, seen


class Slots:
    """A KV cache of a fixed size, for one token at a time: shapes that a compiler can know.

    ``place``: int64 [1], the slot of the token; keys and values: [heads, context, d/heads].
    """

    def __init__(self, place: Tensor, keys: Tensor, values: Tensor) -> None:
        self.place, self.keys, self.values = place, keys, values

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fill the slot with those of one token [1, heads, 1, d/heads]: the keys and values of all
        slots, and which of these the token sees, [1, context]: those up to its own."""
        slots = torch.arange(self.keys.shape[1])
        own = (slots == self.place).unsqueeze(-1)  # [context, 1]
        self.keys = torch.where(own, key[0], self.keys)
        self.values = torch.where(own, value[0], self.values)
        return self.keys.unsqueeze(0), self.values.unsqueeze(0), (slots <= self.place).unsqueeze(0)


class Turns(NamedTuple):
    """Cosines and sines of the rotary angles of N tokens, [N, d/heads/2] each."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, tokens: int, width: int) -> Turns:
        """Those of the places 0 to ``tokens`` - 1: place * 10000^(-2j / width) for channel pair j
        of a head of ``width`` channels. RoFormer (Su et al. 2021), equation 15."""
        rates = 10000.0 ** (torch.arange(0, width, 2) / -width)
        angles = torch.arange(tokens).unsqueeze(1) * rates
        return cls(angles.cos(), angles.sin())

    def apply(self, x: Tensor) -> Tensor:
        """x: [..., N, d/heads], the channels j and j + d/heads/2 of each token turned."""
        a, b = torch.unflatten(x, -1, (2, -1)).unbind(-2)
        return torch.cat((a * self.cos - b * self.sin, a * self.sin + b * self.cos), dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, or over those up to each where ``causal``."""

    def __init__(self, d_model: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.proj = nn.Linear(d_model, d_model)

    def forward(
        self, x: Tensor, turns: Turns | None = None, memory: Memory | Slots | None = None
    ) -> Tensor:
        """x: [B, N, d], same shape. Queries and keys are turned by ``turns``, if there are any;
        with a memory, x are the tokens after those in it."""
        qkv = torch.unflatten(self.qkv(x), -1, (3, self.heads, -1))  # [B, N, 3, heads, d/heads]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, d/heads]
        if turns is not None:
            q, k = turns.apply(q), turns.apply(k)
        if memory is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        else:
            k, v, seen = memory.extend(k, v)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        y: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return y


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(
        self,
        d_model: int,
        heads: int,
        mlp: MlpConfig,
        *,
        causal: bool = False,
        masked_loop: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, heads, causal=causal)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = _make_mlp(mlp, masked_loop)

    def forward(
        self, x: Tensor, turns: Turns | None = None, memory: Memory | Slots | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The block's output [B, N, d] and its gate logits [B, N, E], None where it is dense.

        ``turns`` and ``memory`` are those of `Attention`.
        """
        x = x + self.attention(self.norm1(x), turns, memory)
        if isinstance(self.mlp, DenseMLP):
            return x + self.mlp(self.norm2(x)), None
        y, logits = self.mlp.with_logits(self.norm2(x))
        return x + y, logits


def _make_mlp(config: MlpConfig, masked_loop: bool) -> ButterflyMoE | StandardMoE | DenseMLP:
    if isinstance(config, ButterflyConfig):
        return MaskedLoopButterflyMoE(config) if masked_loop else ButterflyMoE(config)
    return StandardMoE(config) if isinstance(config, StandardConfig) else DenseMLP(config)
