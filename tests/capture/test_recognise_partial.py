"""What is nearly a Butterfly layer: rebuilt exactly, and told apart."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from .forms_of_rotations import NARROW, CutOff
from .test_recognise_styles import (
    EXPERTS,
    LAYERS,
    ROUNDING,
    WIDTH,
    Gathered,
    WhereLoop,
    layer,
    recognised,
)


class Reflection(Gathered):
    """Reflections of pairs in place of rotations."""

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        for i in range(LAYERS):
            cos, sin = angles[..., i, :].cos(), angles[..., i, :].sin()
            a, b = x[..., 0::2], x[..., 1::2]
            x = torch.cat([a * cos + b * sin, a * sin - b * cos], -1)
        return x


class Gain(Gathered):
    """A gain of each channel between the input rotation and the ternary product."""

    def multiply(self, x: Tensor) -> Tensor:
        return super().multiply(x * self.extra[0, :WIDTH])


class PartlyRotated(Gathered):
    """Rotations of the first half of the channels only."""

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        for i in range(LAYERS):
            part = angles[..., i, : half // 2]
            x = torch.cat([layer(x[..., :half], part.cos(), part.sin()), x[..., half:]], -1)
        return x


class Turned(WhereLoop):
    """Orthogonal 4x4 blocks of six angles each, of which rotations of pairs make four."""

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        a = F.pad(angles.flatten(-2).unflatten(-1, (-1, 4)), (0, 2), value=0.3)  # [..., n / 4, 6]
        rows, columns = torch.triu_indices(4, 4, 1)
        skew = torch.zeros(*a.shape[:-1], 4, 4)
        skew[..., rows, columns] = a
        skew = skew - skew.mT
        eye = torch.eye(4)
        blocks = torch.linalg.solve(eye + skew, eye - skew)
        return torch.einsum("...pij,...pj->...pi", blocks, x.unflatten(-1, (-1, 4))).flatten(-2)


class PaddedByOnes(Gathered):
    """Half of the channels are ones: each expert adds what its rotation makes of them."""

    def forward(self, x: Tensor) -> Tensor:
        half = WIDTH // 2
        gates, experts = self.route(x)
        x = torch.cat([x[:, :half], torch.ones(len(x), half)], 1)
        return (self.chosen(x, experts) * gates[..., None]).sum(1)


class OutputOnly(Gathered):
    """A loop whose experts share everything in front of the activation."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = torch.zeros_like(x)
        for e in range(EXPERTS):
            weight = torch.where(experts == e, gates, 0.0).sum(-1, keepdim=True)
            y = y + weight * self.down(self.rotate(F.gelu(self.multiply(x)), self.phi[e]))
        return y


class Hyperbolic(Gathered):
    """Hyperbolic turns of pairs, by cosh and sinh."""

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        for i in range(LAYERS):
            cosh, sinh = angles[..., i, :].cosh(), angles[..., i, :].sinh()
            a, b = x[..., 0::2], x[..., 1::2]
            x = torch.cat([a * cosh + b * sinh, a * sinh + b * cosh], -1)
        return x


class TwoShears(Gathered):
    """Two of the three shears that make a turn."""

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        for i in range(LAYERS):
            slope, sin = (angles[..., i, :] / 2).tan(), angles[..., i, :].sin()
            a = x[..., 0::2] - slope * x[..., 1::2]
            x = torch.cat([a, x[..., 1::2] + sin * a], -1)
        return x


class ThreeMirrors(Gathered):
    """Three reflections of each pair, one behind the other."""

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        for i in range(LAYERS):
            pairs = x.unflatten(-1, (-1, 2))
            for share in (1, 2, 3):
                angle = share * angles[..., i, :]
                normal = torch.stack([-angle.sin(), angle.cos()], -1)
                pairs = pairs - 2 * (pairs * normal).sum(-1, keepdim=True) * normal
            x = pairs.transpose(-1, -2).flatten(-2)
        return x


class CutOffBlocks(CutOff):
    """Leading channels of orthogonal 4x4 blocks that no rotations of pairs make."""

    def matrices(self, angles: Tensor) -> Tensor:
        skew = torch.randn(EXPERTS, 8, 4, 4)
        blocks = torch.matrix_exp(skew - skew.mT)
        whole = torch.stack([torch.block_diag(*expert) for expert in blocks])
        order = torch.arange(32).reshape(8, 4).T.reshape(-1)
        return whole[:, :NARROW, order[:NARROW]].clone()


PARTIAL = [
    (Hyperbolic, "not orthogonal"),
    (TwoShears, "not orthogonal"),
    (ThreeMirrors, "determinant -1"),
    (CutOffBlocks, "not orthogonal"),
    (Reflection, "determinant -1"),
    (Gain, "not orthogonal"),
    (PartlyRotated, "4 of 8 pairs of an input layer are never rotated"),
    (Turned, "orthogonal 4x4"),
    (PaddedByOnes, "padded with numbers that are not zero"),
    (OutputOnly, "do not rotate their input"),
]


@pytest.mark.parametrize(("kind", "reason"), PARTIAL)
def test_other_blocks_are_told_apart(kind: type[Gathered], reason: str) -> None:
    """Blocks that are no rotations of pairs are rebuilt exactly, and not called a Butterfly."""
    report, difference = recognised(kind)
    assert report.recognised == "partial"
    assert reason in report.reason
    assert difference < ROUNDING
