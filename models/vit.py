"""Vision transformers whose MLP is a ButterflyMoE, a StandardMoE, or dense."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..compiler.errors import BadInput, UsageError
from .blocks import Block, DenseConfig, MlpConfig, check_widths, mlp_as_dict, mlp_from_dict
from .butterfly import ButterflyConfig
from .standard import StandardConfig


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
        check_widths("ViT", self.d_model, self.heads, self.mlp)

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
        return {**asdict(self), "mlp": mlp_as_dict(self.mlp)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ViTConfig:
        """The configuration that ``as_dict`` wrote. KeyError or TypeError if it is none."""
        return cls(**{**data, "mlp": mlp_from_dict(data["mlp"])})


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
            Block(d, config.heads, config.mlp, masked_loop=masked_loop)
            for _ in range(config.layers)
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
