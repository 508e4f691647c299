"""B(theta): layers of Givens rotations of channel pairs, each with a fixed perfect shuffle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..compiler.errors import UsageError, unknown_name

Shuffle = Literal["deinterleave", "interleave", "stride"]
SHUFFLES: tuple[str, ...] = get_args(Shuffle)


def padded_width(width: int) -> int:
    """The smallest power of two that is not below ``width``, and at least 2."""
    return max(2, 1 << (width - 1).bit_length())


@dataclass(frozen=True)
class Rotation:
    """The shape of one B(theta): everything but its angles.

    ``shuffle``: ``deinterleave`` sends x to (x[0::2], x[1::2]); ``interleave`` is its inverse;
    ``stride`` has no shuffle, its layer l rotates the channels i and i + 2**l.
    ``shuffle_first``: shuffle before the rotation of each layer (eq. 4), not after (Algorithm 1).
    ``transposed``: the transpose of the whole of B(theta), padding and stripping apart.
    A width that is no power of two is zero-padded to the next one before, stripped after.
    """

    width: int
    layers: int = 2
    shuffle: Shuffle = "deinterleave"
    shuffle_first: bool = False
    transposed: bool = False

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UsageError(f"a rotation of width {self.width}", help="give a width of at least 1")
        if self.shuffle not in SHUFFLES:
            raise unknown_name("shuffle", str(self.shuffle), SHUFFLES)
        deepest = self.padded.bit_length() - 1
        if not 1 <= self.layers <= deepest:
            raise UsageError(
                f"{self.layers} butterfly layers on width {self.width}",
                help=f"give 1 to {deepest} = log2({self.padded}) layers",
            )

    @property
    def padded(self) -> int:
        """The width that is rotated: the next power of two."""
        return padded_width(self.width)

    @property
    def angles(self) -> int:
        """How many angles one expert owns on this side."""
        return self.layers * self.padded // 2

    def apply(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """B(theta) x for x: [..., width] and cos, sin: [..., layers, padded / 2]."""
        spare = self.padded - self.width
        if spare:
            x = F.pad(x, (0, spare))
        # Unbound at once: the gradient of an index is as large as all layers.
        turns = list(enumerate(zip(cos.unbind(-2), sin.unbind(-2), strict=True)))
        for layer, (cosine, sine) in reversed(turns) if self.transposed else turns:
            x = self._layer(x, cosine, -sine if self.transposed else sine, layer)
        return x[..., : self.width] if spare else x

    def _layer(self, x: Tensor, cos: Tensor, sin: Tensor, layer: int) -> Tensor:
        """One layer; a transposed one runs the inverse shuffle at the other end."""
        if self.shuffle == "stride":
            return _rotate_strided(x, cos, sin, 1 << layer)
        deinterleaves = (self.shuffle == "deinterleave") != self.transposed
        first = self.shuffle_first != self.transposed
        # An interleave in front of the rotation pairs x[j] with x[j + n/2]; a deinterleave behind
        # it puts the two results into halves: neither of these moves any data.
        x = deinterleave(x) if first and deinterleaves else x
        a, b = _halves(x) if first and not deinterleaves else _neighbours(x)
        a, b = a * cos - b * sin, a * sin + b * cos
        if not first and deinterleaves:
            return torch.cat((a, b), dim=-1)
        x = torch.stack((a, b), dim=-1).flatten(-2)
        return x if first else interleave(x)


def deinterleave(x: Tensor) -> Tensor:
    """(x[0::2], x[1::2]) of the last axis, which has even width."""
    return torch.unflatten(x, -1, (-1, 2)).transpose(-1, -2).flatten(-2)


def interleave(x: Tensor) -> Tensor:
    """The inverse of ``deinterleave``: x[0], x[n/2], x[1], x[n/2 + 1] and so on."""
    return torch.unflatten(x, -1, (2, -1)).transpose(-1, -2).flatten(-2)


def _neighbours(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b = torch.unflatten(x, -1, (-1, 2)).unbind(-1)
    return a, b


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b = torch.unflatten(x, -1, (2, -1)).unbind(-2)
    return a, b


def _rotate_strided(x: Tensor, cos: Tensor, sin: Tensor, stride: int) -> Tensor:
    """Rotate x[i] with x[i + stride] inside blocks of 2 * stride; angle j = block-major pair j."""
    a, b = torch.unflatten(x, -1, (-1, 2, stride)).unbind(-2)  # each [..., blocks, stride]
    cos, sin = (torch.unflatten(part, -1, (-1, stride)) for part in (cos, sin))
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-2).flatten(-3)
