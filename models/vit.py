"""Vision transformers whose MLP is a ButterflyMoE, a StandardMoE, or dense."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compiler.errors import BadInput, UsageError
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


@dataclass(frozen=True)
class ViTConfig:
    """A pre-norm ViT with a class token; the defaults are the papers' CIFAR-100 model.

    ``mlp`` says which kind of MLP all layers have; its widths must fit ``d_model``.
    ``position_std``: spread of the position embedding at the start; patches of one pixel tell
    little but where they are, so they want about 0.5.
    """

    image: int = 32
    channels: int = 3
    patch: int = 4
    classes: int = 100
    d_model: int = 256
    heads: int = 4
    layers: int = 7
    position_std: float = 0.02
    mlp: MlpConfig = field(default_factory=ButterflyConfig)

    def __post_init__(self) -> None:
        if self.image % self.patch:
            raise UsageError(
                f"patches of {self.patch} pixels do not tile an image of {self.image}",
                help="choose a patch size that divides the image size",
            )
        if self.d_model % self.heads:
            raise UsageError(
                f"{self.heads} heads do not divide a width of {self.d_model}",
                help="choose a number of heads that divides d_model",
            )
        width_out = self.mlp.d_out if isinstance(self.mlp, ButterflyConfig) else self.mlp.d_model
        if not self.mlp.d_model == width_out == self.d_model:
            raise UsageError(
                f"an MLP from width {self.mlp.d_model} to {width_out} in a ViT of {self.d_model}",
                help="give the MLP and the ViT the same d_model (linear form: d_ff = d_model too)",
            )

    @property
    def grid(self) -> int:
        """Patches along one edge."""
        return self.image // self.patch

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return self.grid**2 + 1

    def as_dict(self) -> dict[str, Any]:
        """The configuration as plain data; ``from_dict`` reads it back."""
        kind = next(name for name, kind in MLP_CONFIGS.items() if type(self.mlp) is kind)
        return {**asdict(self), "mlp": {"kind": kind, **asdict(self.mlp)}}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ViTConfig:
        """The configuration that ``as_dict`` wrote. KeyError or TypeError if it is none."""
        mlp = dict(data["mlp"])
        kind = MLP_CONFIGS[mlp.pop("kind")]
        return cls(**{**data, "mlp": kind(**mlp)})


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


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, N, d], same shape."""
        qkv = torch.unflatten(self.qkv(x), -1, (3, self.heads, -1))  # [B, N, 3, heads, d/heads]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, d/heads]
        mixed = F.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return y


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, config: ViTConfig, *, masked_loop: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.d_model)
        self.attention = Attention(config.d_model, config.heads)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.mlp = _make_mlp(config.mlp, masked_loop)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The block's output [B, N, d] and its gate logits [B, N, E], None where it is dense."""
        x = x + self.attention(self.norm1(x))
        if isinstance(self.mlp, DenseMLP):
            return x + self.mlp(self.norm2(x)), None
        y, logits = self.mlp.with_logits(self.norm2(x))
        return x + y, logits


class ViT(nn.Module):
    """Images to class logits. ``masked_loop``: ButterflyMoE layers run Algorithm 2 as printed."""

    def __init__(self, config: ViTConfig, *, masked_loop: bool = False) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.embed = nn.Linear(config.channels * config.patch**2, d)
        self.cls = nn.Parameter(torch.zeros(1, 1, d))
        self.position = nn.Parameter(torch.empty(1, config.tokens, d))
        nn.init.trunc_normal_(self.position, std=config.position_std)
        self.blocks = nn.ModuleList(
            Block(config, masked_loop=masked_loop) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits [B, classes] of images [B, channels, image, image]."""
        y, _ = self.with_gates(images)
        return y

    def with_gates(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Class logits [B, classes], and of each MoE layer the gate logits [B, N, E]."""
        x = self.embed(self._patches(images))  # [B, N - 1, d]
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x), dim=1) + self.position
        gates: list[Tensor] = []
        for block in self.blocks:
            x, logits = block(x)
            if logits is not None:
                gates.append(logits)
        y: Tensor = self.head(self.norm(x[:, 0]))
        return y, gates

    def _patches(self, images: Tensor) -> Tensor:
        """[B, C, image, image] to [B, grid * grid, C * patch * patch], patches row by row."""
        config = self.config
        wanted = (config.channels, config.image, config.image)
        if images.dim() != 4 or images.shape[1:] != wanted:
            raise BadInput(
                f"images of shape {list(images.shape)}, wanted [batch, *{list(wanted)}]",
                help="give one batch of images as [batch, channels, height, width]",
            )
        tiles = torch.unflatten(images, 3, (config.grid, config.patch))
        tiles = torch.unflatten(tiles, 2, (config.grid, config.patch))  # [B, C, grid, p, grid, p]
        return tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def butterfly_vit(*, masked_loop: bool = False) -> ViT:
    """The papers' ButterflyViT: 5,661,028 parameters."""
    return ViT(ViTConfig(), masked_loop=masked_loop)


def standard_vit(config: StandardConfig | None = None) -> ViT:
    """The papers' StandardMoE ViT: 31,351,140 parameters."""
    return ViT(ViTConfig(mlp=config or StandardConfig()))


def dense_vit() -> ViT:
    """The papers' dense ViT: 5,583,972 parameters."""
    return ViT(ViTConfig(mlp=DenseConfig()))


def _make_mlp(config: MlpConfig, masked_loop: bool) -> ButterflyMoE | StandardMoE | DenseMLP:
    if isinstance(config, ButterflyConfig):
        return MaskedLoopButterflyMoE(config) if masked_loop else ButterflyMoE(config)
    return StandardMoE(config) if isinstance(config, StandardConfig) else DenseMLP(config)
