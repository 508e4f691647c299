"""B(theta) in many coding styles: one meaning, written as different people write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Turn = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def padded(width: int) -> int:
    """The next power of two."""
    return 1 << (width - 1).bit_length()


# --- one layer of Givens rotations: channels (j, j + stride) of x [..., n], cos and sin [..., n/2]


def by_slices(x: Tensor, cos: Tensor, sin: Tensor, stride: int) -> Tensor:
    if stride == 1:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    return by_view(x, cos, sin, stride)


def by_view(x: Tensor, cos: Tensor, sin: Tensor, stride: int) -> Tensor:
    a, b = x.unflatten(-1, (-1, 2, stride)).unbind(-2)
    cos, sin = cos.unflatten(-1, (-1, stride)), sin.unflatten(-1, (-1, stride))
    return torch.stack((cos * a - sin * b, sin * a + cos * b), -2).flatten(-3)


def by_halves(x: Tensor, cos: Tensor, sin: Tensor, stride: int) -> Tensor:
    """Partners brought into two halves, turned, and put back by an index."""
    number = torch.arange(x.shape[-1]).reshape(-1, 2, stride).transpose(0, 1).reshape(-1)
    a, b = x[..., number].chunk(2, dim=-1)
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return turned[..., number.argsort()]


def by_einsum(x: Tensor, cos: Tensor, sin: Tensor, stride: int) -> Tensor:
    blocks = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    blocks = blocks.unflatten(-3, (-1, stride))
    turned = torch.einsum("...qsij,...qjs->...qis", blocks, x.unflatten(-1, (-1, 2, stride)))
    return turned.flatten(-3)


def by_product(x: Tensor, cos: Tensor, sin: Tensor, stride: int) -> Tensor:
    rows = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))
    pairs = x.unflatten(-1, (-1, 2, stride)).transpose(-1, -2).flatten(-3, -2)
    turned = (rows @ pairs.unsqueeze(-1)).squeeze(-1)
    return turned.unflatten(-2, (-1, stride)).transpose(-1, -2).flatten(-3)


def by_complex(x: Tensor, cos: Tensor, sin: Tensor, stride: int) -> Tensor:
    pairs = x.unflatten(-1, (-1, 2, stride)).transpose(-1, -2).flatten(-3, -2)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin))
    return turned.unflatten(-2, (-1, stride)).transpose(-1, -2).flatten(-3)


def _twice(values: Tensor, stride: int) -> Tensor:
    """Both channels of a pair get the pair's value."""
    each = values.unflatten(-1, (-1, 1, stride))
    return torch.cat([each, each], dim=-2).flatten(-3)


def by_partner(x: Tensor, cos: Tensor, sin: Tensor, stride: int) -> Tensor:
    """x * cos + x[partner] * sin."""
    number = torch.arange(x.shape[-1])
    sign = torch.where((number & stride) == 0, -1.0, 1.0).to(x.dtype)
    return x * _twice(cos, stride) + x[..., number ^ stride] * (_twice(sin, stride) * sign)


def by_roll(x: Tensor, cos: Tensor, sin: Tensor, stride: int) -> Tensor:
    first = ((torch.arange(x.shape[-1]) & stride) == 0).to(x.dtype)
    cos, sin = _twice(cos, stride), _twice(sin, stride)
    up, down = torch.roll(x, -stride, -1), torch.roll(x, stride, -1)
    return x * cos - up * (sin * first) + down * (sin * (1 - first))


def by_writes(x: Tensor, cos: Tensor, sin: Tensor, stride: int) -> Tensor:
    """In place, slice by slice."""
    view = x.unflatten(-1, (-1, 2, stride))
    a, b = view[..., 0, :], view[..., 1, :]
    cos, sin = cos.unflatten(-1, (-1, stride)), sin.unflatten(-1, (-1, stride))
    first, second = a * cos - b * sin, a * sin + b * cos
    out = torch.zeros_like(torch.stack([first, second], -2))
    out[..., 0, :] = first
    out[..., 1, :] = second
    return out.flatten(-3)


TURNS: dict[str, Turn] = {
    "slices": by_slices,
    "view": by_view,
    "halves": by_halves,
    "einsum": by_einsum,
    "product": by_product,
    "complex": by_complex,
    "partner": by_partner,
    "roll": by_roll,
    "writes": by_writes,
}
WHOLE = ("matrix", "bmm")
MATRICES = (*WHOLE, "layer_matrices")
STYLES = (*TURNS, *MATRICES)
SHUFFLES = ("deinterleave", "interleave", "strides")
WRITTEN = ("slices", "index", "view")

# --- shuffles ---


def deinterleaved(x: Tensor, written: str) -> Tensor:
    """The even channels, then the odd ones."""
    if written == "slices":
        return torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)
    if written == "view":
        return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return x.index_select(-1, torch.arange(x.shape[-1]).reshape(-1, 2).T.reshape(-1))


def interleaved(x: Tensor, written: str) -> Tensor:
    """One channel of each half in turn."""
    if written == "slices":
        return torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)
    if written == "view":
        return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    return x[..., torch.arange(x.shape[-1]).reshape(2, -1).T.reshape(-1)]


# --- whole rotations ---


@dataclass(frozen=True)
class Rotation:
    """How one side is rotated, and how that is written.

    ``first``: shuffle in front of each layer. ``every``: padded and stripped layer by layer.
    """

    style: str
    shuffle: str
    written: str
    first: bool
    transposed: bool
    every: bool

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rows x [..., n] turned by cos, sin [..., L, n'/2]; leading axes are broadcast."""
        n, wide = x.shape[-1], 2 * cos.shape[-1]
        if self.style in WHOLE:
            eye = torch.eye(wide, dtype=x.dtype)
            whole = self.walk(eye, cos[..., None, :, :], sin[..., None, :, :])
            whole = whole[..., :n, :n]  # [j, :]: what becomes of channel j
            if self.style == "bmm":
                return (whole.mT @ x[..., None])[..., 0]
            return torch.einsum("...j,...ji->...i", x, whole)
        if not self.every:
            x = F.pad(x, (0, wide - n))
        return self.walk(x, cos, sin)[..., :n]

    def walk(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n, wide, depth = x.shape[-1], 2 * cos.shape[-1], cos.shape[-2]
        for i in reversed(range(depth)) if self.transposed else range(depth):
            x = F.pad(x, (0, wide - n)) if self.every else x
            x = self.layer(x, cos[..., i, :], sin[..., i, :], i)
            x = x[..., :n] if self.every else x
        return x

    def layer(self, x: Tensor, cos: Tensor, sin: Tensor, i: int) -> Tensor:
        if self.transposed:
            x = x if self.first else self.ordered(x, back=True)
            x = self.turn(x, cos, -sin, i)
            return self.ordered(x, back=True) if self.first else x
        x = self.ordered(x) if self.first else x
        x = self.turn(x, cos, sin, i)
        return x if self.first else self.ordered(x)

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor, i: int) -> Tensor:
        stride = 2**i if self.shuffle == "strides" else 1
        if self.style == "layer_matrices":
            eye = torch.eye(x.shape[-1], dtype=x.dtype)
            turned = by_slices(eye, cos[..., None, :], sin[..., None, :], stride)
            return torch.einsum("...j,...ji->...i", x, turned)
        return TURNS.get(self.style, by_slices)(x, cos, sin, stride)

    def ordered(self, x: Tensor, back: bool = False) -> Tensor:
        if self.shuffle == "strides":
            return x
        forward = (self.shuffle == "deinterleave") != back
        return (deinterleaved if forward else interleaved)(x, self.written)
