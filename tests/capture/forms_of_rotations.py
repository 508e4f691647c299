"""Butterfly layers whose rotations are matrices, complex numbers or strides."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .test_recognise_styles import (
    CHOSEN,
    EXPERTS,
    HIDDEN,
    LAYERS,
    TOKENS,
    WIDTH,
    Gathered,
    WhereLoop,
    layer,
    ternary,
)

NARROW = 24


class Matrices(Gathered):
    """Whole rotations as dense matrices of each expert, gathered by its number."""

    def matrix(self, angles: Tensor, width: int) -> Tensor:
        eye = torch.eye(width).expand(EXPERTS, width, width)
        return super().rotate(eye, angles[:, None]).transpose(-1, -2)

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        theta, phi = self.matrix(self.theta, WIDTH), self.matrix(self.phi, HIDDEN)
        u = F.gelu(self.multiply(torch.einsum("tkij,tj->tki", theta[experts], x)))
        u = torch.einsum("tkij,tkj->tki", phi[experts], u)
        return (self.down(u) * gates[..., None]).sum(1)


class DeepMatrices(Matrices):
    """Dense matrices of log2 d layers, in which nothing is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.randn(EXPERTS, 4, WIDTH // 2) * 0.4)
        self.phi = nn.Parameter(torch.randn(EXPERTS, 5, HIDDEN // 2) * 0.4)

    def matrix(self, angles: Tensor, width: int) -> Tensor:
        x = torch.eye(width).expand(EXPERTS, width, width)
        for i in range(angles.shape[1]):
            x = layer(x, angles[:, None, i].cos(), angles[:, None, i].sin())
        return x.transpose(-1, -2)


class WholeExperts(Matrices):
    """Each expert as one matrix, B(phi) W_hat B(theta), behind it the activation and W_down."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        dense = torch.zeros(TOKENS, EXPERTS).scatter(1, experts, gates)
        theta, phi = self.matrix(self.theta, WIDTH), self.matrix(self.phi, HIDDEN)
        whole = torch.stack([phi[e] @ ternary(self.up) @ theta[e] for e in range(EXPERTS)])
        hidden = F.gelu(torch.einsum("efd,td->tef", whole, x))
        return torch.einsum("te,tef->tf", dense, hidden) @ self.down.weight.T + self.down.bias


class ChosenMatrices(Matrices):
    """The matrices of the chosen experts multiplied first, then applied with bmm."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        theta, phi = self.matrix(self.theta, WIDTH), self.matrix(self.phi, HIDDEN)
        whole = (phi @ ternary(self.up) @ theta)[experts].flatten(0, 1)  # [T k, F, d]
        rows = x.repeat_interleave(CHOSEN, 0)[..., None]
        u = F.gelu(torch.bmm(whole, rows).squeeze(-1))
        return (self.down(u).unflatten(0, (-1, CHOSEN)) * gates[..., None]).sum(1)


class BySums(Matrices):
    """W_hat times the matrices of all experts by one einsum, before one of them is chosen."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        theta, phi = self.matrix(self.theta, WIDTH), self.matrix(self.phi, HIDDEN)
        up = torch.einsum("fd,edc->efc", ternary(self.up), theta)
        down = torch.einsum("df,efg->edg", self.down.weight, phi)
        hidden = F.gelu(torch.einsum("tkfd,td->tkf", up[experts], x))
        y = torch.einsum("tkdf,tkf->tkd", down[experts], hidden) + self.down.bias
        return (y * gates[..., None]).sum(1)


class Blocked(Gathered):
    """Only the leading block of a padded rotation, as a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Parameter(torch.randn(EXPERTS, LAYERS, WIDTH) * 0.4)

    def block(self, angles: Tensor) -> Tensor:
        steps = []
        for i in range(LAYERS):
            cos, sin = angles[i].cos(), angles[i].sin()
            turned = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
            order = torch.cat([torch.arange(0, 2 * WIDTH, 2), torch.arange(1, 2 * WIDTH, 2)])
            steps.append(torch.eye(2 * WIDTH)[order] @ torch.block_diag(*turned))
        return (steps[1] @ steps[0])[:WIDTH, :WIDTH]

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = torch.zeros_like(x)
        for e in range(EXPERTS):
            weight = torch.where(experts == e, gates, 0.0).sum(-1, keepdim=True)
            u = F.gelu(self.multiply(x @ self.block(self.wide[e]).T))
            y = y + weight * self.down(self.rotate(u, self.phi[e]))
        return y


class Narrow(Gathered):
    """Of 24 channels behind the ternary product, rotations of 32 as whole matrices."""

    depth = LAYERS

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(NARROW, WIDTH) * 0.2)
        self.down = nn.Linear(NARROW, WIDTH)
        self.register_buffer("whole", self.matrices(torch.randn(EXPERTS, self.depth, 16) * 0.4))

    def matrices(self, angles: Tensor) -> Tensor:
        x = torch.eye(32).expand(EXPERTS, 32, 32)
        for i in range(self.depth):
            x = layer(x, angles[:, None, i].cos(), angles[:, None, i].sin())
        return x

    def turn(self, u: Tensor, whole: Tensor) -> Tensor:
        return u @ whole[:NARROW, :NARROW]

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = torch.zeros_like(x)
        for e in range(EXPERTS):
            weight = torch.where(experts == e, gates, 0.0).sum(-1, keepdim=True)
            u = F.gelu(self.multiply(self.rotate(x, self.theta[e])))
            y = y + weight * self.down(self.turn(u, self.whole[e]))
        return y


class Sliced(Narrow):
    """A buffer of whole padded rotations, of which the leading block is applied."""

    depth = 5


class SlicedColumns(Narrow):
    """Padded rows times the leading columns of a whole padded rotation."""

    depth = 5

    def turn(self, u: Tensor, whole: Tensor) -> Tensor:
        return F.pad(u, (0, 32 - NARROW)) @ whole[:, :NARROW]


class CutOff(Narrow):
    """A buffer with the leading blocks of padded rotations, and nothing else of them."""

    def matrices(self, angles: Tensor) -> Tensor:
        return super().matrices(angles)[:, :NARROW, :NARROW].clone()


class Complex(Gathered):
    """Pairs as complex numbers, turned by unit phasors."""

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        for i in range(LAYERS):
            phase = torch.polar(torch.ones_like(angles[..., i, :]), angles[..., i, :])
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
            x = torch.view_as_real(pairs * phase).transpose(-1, -2).flatten(-2)
        return x


class Strides(Gathered):
    """No shuffle: pairs are 1, 2, 4, ... apart."""

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        for i in range(LAYERS):
            parts = x.unflatten(-1, (-1, 2, 2**i))
            a, b = parts[..., 0, :], parts[..., 1, :]
            cos = angles[..., i, :].cos().unflatten(-1, (-1, 2**i))
            sin = angles[..., i, :].sin().unflatten(-1, (-1, 2**i))
            x = torch.stack([a * cos - b * sin, a * sin + b * cos], -2).flatten(-3)
        return x


class Convolved(WhereLoop):
    """Pairs turned by a convolution in groups of two channels."""

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        for i in range(LAYERS):
            cos, sin = angles[i].cos(), angles[i].sin()
            turns = torch.stack([cos, -sin, sin, cos], -1).reshape(-1, 2, 1)  # [n, 2, 1]
            x = F.conv1d(x[..., None], turns, groups=len(cos))[..., 0]
            x = torch.cat([x[..., 0::2], x[..., 1::2]], -1)
        return x


class Exponentials(Gathered):
    """Blocks of all experts as exponentials of skew matrices, gathered by number."""

    def blocks(self, angles: Tensor) -> Tensor:
        zero = torch.zeros_like(angles)
        skew = torch.stack([zero, -angles, angles, zero], -1).unflatten(-1, (2, 2))
        return torch.matrix_exp(skew)

    def chosen(self, x: Tensor, experts: Tensor) -> Tensor:
        rows = x[:, None].expand(-1, CHOSEN, -1)
        theta, phi = self.blocks(self.theta), self.blocks(self.phi)
        return self.expert(rows, theta[experts], phi[experts])

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        for i in range(LAYERS):
            turned = angles[..., i, :, :, :] @ x.unflatten(-1, (-1, 2, 1))
            x = turned[..., 0].transpose(-1, -2).flatten(-2)
        return x


class ChosenExponentials(Exponentials):
    """Angles gathered by number, of which skew matrices and their exponentials are made."""

    def chosen(self, x: Tensor, experts: Tensor) -> Tensor:
        rows = x[:, None].expand(-1, CHOSEN, -1)
        return self.expert(rows, self.blocks(self.theta[experts]), self.blocks(self.phi[experts]))


class Tables(Gathered):
    """Each channel and its partner by tables of places and signs, in the order behind the layer."""

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        channels = torch.arange(x.shape[-1])
        own = torch.cat([channels[0::2], channels[1::2]])
        partner, sign = own ^ 1, 2.0 * (own % 2) - 1
        for i in range(LAYERS):
            angle = angles[..., i, :].index_select(-1, own // 2)
            other = x.index_select(-1, partner) * angle.sin() * sign
            x = x.index_select(-1, own) * angle.cos() + other
        return x


class Shears(Gathered):
    """Each turn as three shears."""

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        for i in range(LAYERS):
            slope, sin = (angles[..., i, :] / 2).tan(), angles[..., i, :].sin()
            a, b = x[..., 0::2], x[..., 1::2]
            a = a - slope * b
            b = b + sin * a
            x = torch.cat([a - slope * b, b], -1)
        return x


class Mirrors(Gathered):
    """Each turn as two reflections, one behind the other."""

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        for i in range(LAYERS):
            half = angles[..., i, :] / 2
            pairs = x.unflatten(-1, (-1, 2)) * torch.tensor([1.0, -1.0])
            normal = torch.stack([-half.sin(), half.cos()], -1)
            pairs = pairs - 2 * (pairs * normal).sum(-1, keepdim=True) * normal
            x = pairs.transpose(-1, -2).flatten(-2)
        return x


class Recursive(Gathered):
    """Halves turned against each other, then each half by itself, by recursion."""

    def rotate(self, x: Tensor, angles: Tensor, depth: int = 0) -> Tensor:
        if depth == LAYERS:
            return x
        half = x.shape[-1] // 2
        angle = angles[..., depth, :half]
        a, b = x.chunk(2, -1)
        upper, lower = a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()
        first, second = angles[..., : half // 2], angles[..., half // 2 :]
        upper, lower = self.rotate(upper, first, depth + 1), self.rotate(lower, second, depth + 1)
        return torch.cat([upper, lower], -1)


class Halves(Gathered):
    """Half-precision tables of angles, in float32 once they are gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("small_theta", self.theta.detach().half())
        self.register_buffer("small_phi", self.phi.detach().bfloat16())

    def chosen(self, x: Tensor, experts: Tensor) -> Tensor:
        rows = x[:, None].expand(-1, CHOSEN, -1)
        return self.expert(rows, self.small_theta[experts].float(), self.small_phi[experts].float())
