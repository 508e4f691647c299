"""Butterfly layers as others may write them: each is recognised, exactly."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.recognise import LayerReport, recognise
from butterflyc.compiler.ir.interpret import interpret

TOKENS, WIDTH, HIDDEN, EXPERTS, CHOSEN, LAYERS = 7, 16, 32, 4, 2, 2
# Angles are gathered before their cosine is taken, which eager does in float32: so in double
# precision the captured graph itself is that far from the rebuilt one.
ROUNDING = 1e-6


def ternary(w: Tensor) -> Tensor:
    gamma = w.abs().mean()
    return gamma * (w / (gamma + 1e-8)).round().clamp(-1, 1)


def layer(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One Givens rotation of neighbouring pairs, then the deinterleave."""
    a, b = x[..., 0::2], x[..., 1::2]
    x = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    return torch.cat([x[..., 0::2], x[..., 1::2]], -1)


class Gathered(nn.Module):
    """Angles gathered by expert index, cosines taken afterwards."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.gate = nn.Linear(WIDTH, EXPERTS)
        self.theta = nn.Parameter(torch.randn(EXPERTS, LAYERS, WIDTH // 2) * 0.4)
        self.phi = nn.Parameter(torch.randn(EXPERTS, LAYERS, HIDDEN // 2) * 0.4)
        self.up = nn.Parameter(torch.randn(HIDDEN, WIDTH) * 0.2)
        self.down = nn.Linear(HIDDEN, WIDTH)
        self.extra = nn.Parameter(torch.rand(EXPERTS, HIDDEN) + 0.5)
        self.places = nn.Parameter(torch.rand(TOKENS, 1) + 0.5)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, experts = self.gate(x).softmax(-1).topk(CHOSEN, -1)
        return values / values.sum(-1, keepdim=True), experts

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        for i in range(LAYERS):
            x = layer(x, angles[..., i, :].cos(), angles[..., i, :].sin())
        return x

    def multiply(self, x: Tensor) -> Tensor:
        return F.linear(x, ternary(self.up))

    def hidden(self, x: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        return self.rotate(F.gelu(self.multiply(self.rotate(x, theta))), phi)

    def expert(self, x: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        return self.down(self.hidden(x, theta, phi))

    def chosen(self, x: Tensor, experts: Tensor) -> Tensor:
        rows = x[:, None].expand(-1, experts.shape[1], -1)
        return self.expert(rows, self.theta[experts], self.phi[experts])

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        return (self.chosen(x, experts) * gates[..., None]).sum(1)


# --- the same layer, written otherwise ---


class WhereLoop(Gathered):
    """A loop over experts, each over all tokens, weighed by `where` of its number."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = torch.zeros_like(x)
        for e in range(EXPERTS):
            weight = torch.where(experts == e, gates, 0.0).sum(-1, keepdim=True)
            y = y + weight * self.expert(x, self.theta[e], self.phi[e])
        return y


class SlotLoop(Gathered):
    """A loop over the k slots, with angles gathered for each."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = torch.zeros_like(x)
        for i in range(CHOSEN):
            e = experts[:, i]
            y = y + gates[:, i : i + 1] * self.expert(x, self.theta[e], self.phi[e])
        return y


class Scattered(Gathered):
    """All experts run, stacked; the gates are scattered into a dense [T, E]."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        dense = torch.zeros(TOKENS, EXPERTS).scatter(1, experts, gates)
        every = [self.expert(x, self.theta[e], self.phi[e]) for e in range(EXPERTS)]
        return torch.einsum("te,ted->td", dense, torch.stack(every, 1))


class ExpertAxis(Gathered):
    """All experts run along an axis; the chosen are gathered at the end."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        every = self.expert(x[:, None], self.theta[None], self.phi[None])  # [T, E, d]
        index = experts[..., None].expand(-1, -1, WIDTH)
        return (every.gather(1, index) * gates[..., None]).sum(1)


class Repeated(Gathered):
    """One row a (token, slot), token and slot in one axis."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        rows, numbers = x.repeat_interleave(CHOSEN, 0), experts.reshape(-1)
        y = self.expert(rows, self.theta[numbers], self.phi[numbers]) * gates.reshape(-1, 1)
        return y.reshape(-1, CHOSEN, WIDTH).sum(1)


class OneHot(Gathered):
    """Angles picked by one-hot products in place of an index."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        hot = F.one_hot(experts, EXPERTS).to(x.dtype)
        theta = torch.einsum("tke,elp->tklp", hot, self.theta)
        phi = torch.einsum("tke,elp->tklp", hot, self.phi)
        rows = x[:, None].expand(-1, CHOSEN, -1)
        return (self.expert(rows, theta, phi) * gates[..., None]).sum(1)


class TwoByTwo(Gathered):
    """The rotations of pairs as 2x2 matrices, applied by einsum."""

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        for i in range(LAYERS):
            cos, sin = angles[..., i, :].cos(), angles[..., i, :].sin()
            rows = torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)
            pairs = x.unflatten(-1, (-1, 2))
            x = torch.einsum("...pij,...pj->...pi", torch.stack(rows, -2), pairs)
            x = x.transpose(-1, -2).flatten(-2)
        return x


class Argmax(Gathered):
    """One expert a token, the gate its probability."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.gate(x).softmax(-1).max(-1)
        return self.expert(x, self.theta[experts], self.phi[experts]) * gates[:, None]


class ArgmaxOfMap(Gathered):
    """Scores of a 1x1 convolution, experts along axis 1; the best by argmax, one-hot."""

    def forward(self, x: Tensor) -> Tensor:
        scores = F.conv2d(x.mT[None, :, None], self.gate.weight[..., None, None])  # [1, E, 1, T]
        chosen = F.one_hot(scores.argmax(1), EXPERTS).movedim(-1, 1) * scores.softmax(1)
        every = self.expert(x[:, None], self.theta[None], self.phi[None])  # [T, E, d]
        return torch.einsum("bewt,ted->td", chosen, every)


class Sorted(Gathered):
    """Experts chosen by a full sort of the scores, cut at k."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, experts = self.gate(x).softmax(-1).sort(-1, descending=True)
        return values[:, :CHOSEN], experts[:, :CHOSEN]


class GatheredGates(Gathered):
    """Sigmoid gates gathered at the chosen logits."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.gate(x)
        experts = scores.topk(CHOSEN, -1).indices
        return scores.sigmoid().gather(-1, experts), experts


class WrittenToZeros(Gathered):
    """A masked loop over experts; rotations as Algorithm 1 has them, element by element."""

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        width = x.shape[1]
        for cos, sin in zip(angles.cos(), angles.sin(), strict=True):
            z, y = torch.zeros_like(x), torch.zeros_like(x)
            for j in range(width // 2):
                z[:, 2 * j] = cos[j] * x[:, 2 * j] - sin[j] * x[:, 2 * j + 1]
                z[:, 2 * j + 1] = sin[j] * x[:, 2 * j] + cos[j] * x[:, 2 * j + 1]
            y[:, : width // 2], y[:, width // 2 :] = z[:, 0::2], z[:, 1::2]
            x = y
        return x

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = torch.zeros_like(x)
        for e in range(EXPERTS):
            token, slot = torch.where(experts == e)
            part = self.expert(x[token], self.theta[e], self.phi[e])
            y.index_add_(0, token, part * gates[token, slot, None])
        return y


class StraightThrough(Gathered):
    """The ternary matrix as w + (quantised - w), which float32 rounds."""

    def multiply(self, x: Tensor) -> Tensor:
        return F.linear(x, self.up + (ternary(self.up) - self.up).detach())


class WrittenOutGelu(Gathered):
    """GELU written out with `erf`."""

    def hidden(self, x: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        u = self.multiply(self.rotate(x, theta))
        return self.rotate(0.5 * u * (1 + torch.erf(u / 2**0.5)), phi)


class NormInFront(Gathered):
    """The router reads x, the experts a norm of x."""

    def expert(self, x: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        return super().expert(F.layer_norm(x, (WIDTH,)), theta, phi)


class ScaledInFront(Gathered):
    """The experts read x times a number of each place, which stays in front of the layer."""

    def chosen(self, x: Tensor, experts: Tensor) -> Tensor:
        return super().chosen(x * self.places, experts)


class Capacity(Gathered):
    """An expert serves three tokens at most: routing depends on the order, experts do not."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates, experts = super().route(x)
        served = F.one_hot(experts, EXPERTS).sum(1).cumsum(0).gather(1, experts)
        return gates * (served <= 3).to(x.dtype), experts


class ThenTanh(Gathered):
    """A tanh and a number of each place behind the layer, which stay there."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x)) * self.places


class ThenResidual(Gathered):
    """A residual around the layer."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


# What is written otherwise: the forms of it.
FULL: dict[str, list[type[Gathered]]] = {
    "routing": [Argmax, ArgmaxOfMap, Sorted, GatheredGates, Capacity],
    "dispatch": [Gathered, WhereLoop, SlotLoop, Scattered, ExpertAxis, Repeated, OneHot],
    "rotations": [TwoByTwo, WrittenToZeros],
    "matrices, scales and biases": [StraightThrough],
    "activations": [WrittenOutGelu],
    "around the layer": [NormInFront, ScaledInFront, ThenTanh, ThenResidual],
}


def recognised(kind: type[Gathered]) -> tuple[LayerReport, float]:
    """The report on one layer, and by how much the graph changed, in double precision."""
    x = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(3))
    graph = capture(kind().eval(), (x,)).graph
    result = recognise(graph)
    assert len(result.layers) == 1, result.layers
    (was,) = interpret(graph, x.numpy(), precision="f64")
    (now,) = interpret(result.graph, x.numpy(), precision="f64")
    return result.layers[0], float(np.abs(now - was).max() / np.abs(was).max())


# Element by element: thousands of nodes.
SLOW = {WrittenToZeros: pytest.param(WrittenToZeros, marks=pytest.mark.slow)}


@pytest.mark.parametrize("kind", [SLOW.get(kind, kind) for kind in chain(*FULL.values())])
def test_other_styles_are_recognised_in_full(kind: type[Gathered]) -> None:
    """However it is written, the layer is found with all its experts, and computes the same."""
    report, difference = recognised(kind)
    assert (report.recognised, report.reason) == ("full", "")
    assert report.experts_found == report.experts == EXPERTS
    assert report.residual is not None
    assert report.residual < (ROUNDING if kind in (StraightThrough, WrittenOutGelu) else 1e-9)
    assert difference < ROUNDING


def test_order_dependent_routing_is_said() -> None:
    """Routing by capacity is kept as written, and the report says that it sees the batch."""
    report, _ = recognised(Capacity)
    assert "depend on the order of the tokens" in report.parts["routing"]
