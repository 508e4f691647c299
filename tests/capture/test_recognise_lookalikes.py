"""What is nearly a Butterfly layer: left as it is, with the reason."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .forms_of_rotations import CutOff
from .lookalikes_of_matrices import DenseSubstrate, FiveLevels, SumOfMasks, TwoScales
from .lookalikes_of_routers import (
    ClippedScores,
    FewPlaces,
    FixedMixture,
    InterpolatedAngles,
    InTurn,
    LargestResult,
    Leaking,
    LeakingMask,
    Overwritten,
    OwnDownByThreshold,
    RoundedScores,
    Unsure,
)
from .test_recognise_styles import (
    CHOSEN,
    EXPERTS,
    HIDDEN,
    TOKENS,
    WIDTH,
    Gathered,
    layer,
    recognised,
    ternary,
)


class OwnDown(Gathered):
    """A W_down of each expert's own, gathered."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        rows = x[:, None].expand(-1, CHOSEN, -1)
        own = self.extra[:, :WIDTH, None] * self.down.weight  # [E, d, F]
        hidden = self.hidden(rows, self.theta[experts], self.phi[experts])
        y = torch.einsum("tkdf,tkf->tkd", own[experts], hidden)
        return (y * gates[..., None]).sum(1)


class OwnDownLoop(Gathered):
    """A W_down of each expert's own, in a loop."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = torch.zeros_like(x)
        for e in range(EXPERTS):
            weight = torch.where(experts == e, gates, 0.0).sum(-1, keepdim=True)
            hidden = self.hidden(x, self.theta[e], self.phi[e])
            y = y + weight * F.linear(hidden, self.down.weight * self.extra[e])
        return y


class OwnSubstrate(Gathered):
    """A ternary matrix of each expert's own."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = torch.zeros_like(x)
        for e in range(EXPERTS):
            weight = torch.where(experts == e, gates, 0.0).sum(-1, keepdim=True)
            own = ternary(self.up + self.extra[e, :, None] * 0.2)
            hidden = F.gelu(F.linear(self.rotate(x, self.theta[e]), own))
            y = y + weight * self.down(self.rotate(hidden, self.phi[e]))
        return y


class OwnBias(Gathered):
    """A bias of each expert's own behind W_down."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = self.chosen(x, experts) + self.extra[experts][..., :WIDTH]
        return (y * gates[..., None]).sum(1)


class OwnScale(Gathered):
    """A scale of each expert's own behind W_down."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = self.chosen(x, experts) * self.extra[experts][..., :1]
        return (y * gates[..., None]).sum(1)


class GatedInput(Gathered):
    """Gates in front of an expert that is not linear."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        rows = x[:, None] * gates[..., None]
        return self.expert(rows, self.theta[experts], self.phi[experts]).sum(1)


class SoftAngles(Gathered):
    """One expert with the angles of the chosen ones averaged."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        weight = gates[..., None, None]
        theta, phi = (self.theta[experts] * weight).sum(1), (self.phi[experts] * weight).sum(1)
        return self.expert(x, theta, phi)


class QuantisedActivations(Gathered):
    """Activations rounded in front of the ternary product."""

    def multiply(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-6) / 127
        return super().multiply((x / scale).round().clamp(-127, 127) * scale)


class NormBetween(Gathered):
    """A norm between the input rotation and the ternary product."""

    def multiply(self, x: Tensor) -> Tensor:
        return super().multiply(F.layer_norm(x, (WIDTH,)))


class ActivationBetween(Gathered):
    """The activation between two layers of the output rotation."""

    def hidden(self, x: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        u = self.multiply(self.rotate(x, theta))
        u = layer(u, phi[..., 0, :].cos(), phi[..., 0, :].sin())
        return layer(F.gelu(u), phi[..., 1, :].cos(), phi[..., 1, :].sin())


class Clamped(Gathered):
    """A clamp behind the ternary product: another function of values beyond 50 only."""

    def multiply(self, x: Tensor) -> Tensor:
        return super().multiply(x).clamp(-50, 50)


class ClampedMatrices(Gathered):
    """A clamp behind each rotation as a whole matrix: another function beyond 50 only."""

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        eye = torch.eye(x.shape[-1])
        whole = super().rotate(eye, angles[..., None, :, :])
        return torch.einsum("...j,...ji->...i", x, whole).clamp(-50, 50)


class ClampedResult(Gathered):
    """The experts' results clamped, which are other results beyond 50 only."""

    def expert(self, x: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        return super().expert(x, theta, phi).clamp(-50, 50)


class Shrunk(Gathered):
    """A shrinkage in front of the ternary product: another function below 1e-6 only."""

    def multiply(self, x: Tensor) -> Tensor:
        return super().multiply(torch.where(x.abs() < 1e-6, torch.zeros_like(x), x))


class NumbersOutOfReach(Gathered):
    """Channels in an order read from a table by one-hot products, which other gates break."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.gate(x).softmax(-1).max(-1, keepdim=True)
        hot = F.one_hot(experts, EXPERTS).to(x.dtype)
        orders = torch.stack([torch.arange(WIDTH).roll(e) for e in range(EXPERTS)]).to(x.dtype)
        order = torch.einsum("tke,ed->tkd", hot, orders)[:, 0].long()
        theta, phi = self.theta[experts[:, 0]], self.phi[experts[:, 0]]
        return self.expert(x.gather(-1, order), theta, phi) * gates


class TwoActivations(Gathered):
    """A second activation behind the output rotation."""

    def expert(self, x: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        return self.down(F.relu(self.hidden(x, theta, phi)))


class PlaceDependent(Gathered):
    """A scale at the last place only: not seen part by part, but by the whole layer."""

    def multiply(self, x: Tensor) -> Tensor:
        scale = torch.ones(TOKENS, 1, 1)
        scale[-1] = 1.5
        return super().multiply(x * scale)


class TooFewExperts(Gathered):
    """A router that chooses among more experts than there are."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS + 2)
        self.gate.bias.data[EXPERTS:] = -1e4  # the last two are never chosen


class StandardExperts(Gathered):
    """Matrices of each expert's own, without rotations: a standard mixture."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        own = self.extra[:, :, None] * self.up  # [E, F, d]
        hidden = F.gelu(torch.einsum("tkfd,td->tkf", own[experts], x))
        return (hidden * gates[..., None]).sum(1)


class OwnUpBias(Gathered):
    """A bias of each expert's own behind the ternary product."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = torch.zeros_like(x)
        for e in range(EXPERTS):
            weight = torch.where(experts == e, gates, 0.0).sum(-1, keepdim=True)
            u = F.linear(self.rotate(x, self.theta[e]), ternary(self.up), self.extra[e])
            y = y + weight * self.down(self.rotate(F.gelu(u), self.phi[e]))
        return y


class OneExpert(Gathered):
    """Only expert 0 does anything."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        weight = torch.where(experts == 0, gates, 0.0).sum(-1, keepdim=True)
        return weight * self.expert(x, self.theta[0], self.phi[0])


class MissingExpert(Gathered):
    """The last expert does nothing."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = torch.zeros_like(x)
        for e in range(EXPERTS - 1):
            weight = torch.where(experts == e, gates, 0.0).sum(-1, keepdim=True)
            y = y + weight * self.expert(x, self.theta[e], self.phi[e])
        return y


class MixedTokens(Gathered):
    """The mean over tokens added to each inside the expert."""

    def hidden(self, x: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        u = self.multiply(self.rotate(x, theta))
        return self.rotate(F.gelu(u + u.mean(0)), phi)


class ShiftedTokens(Gathered):
    """Experts rotate one token by the angles of its neighbour's."""

    def multiply(self, x: Tensor) -> Tensor:
        return super().multiply(torch.cat([x[1:], x[:1]]))


class GroupedSubstrate(Gathered):
    """One ternary matrix for both halves of the channels."""

    def multiply(self, x: Tensor) -> Tensor:
        halves = x.unflatten(-1, (2, WIDTH // 2))
        return F.linear(halves, ternary(self.up)[:WIDTH, : WIDTH // 2]).flatten(-2)


class GroupedDown(Gathered):
    """One W_down for both halves of the channels."""

    def expert(self, x: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        halves = self.hidden(x, theta, phi).unflatten(-1, (2, HIDDEN // 2))
        return F.linear(halves, self.down.weight[: WIDTH // 2, : HIDDEN // 2]).flatten(-2)


class EarlyGates(Gathered):
    """Linear experts, so gates in front of them are gates behind them; not taken for that yet."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.gate(x).softmax(-1).max(-1)
        rows = self.multiply(self.rotate(x * gates[:, None], self.theta[experts]))
        return self.rotate(rows, self.phi[experts])


class InnerResidual(Gathered):
    """A residual inside the experts, weighed by their gates."""

    def chosen(self, x: Tensor, experts: Tensor) -> Tensor:
        return super().chosen(x, experts) + x[:, None]


class BiasInFront(Gathered):
    """A bias between the input rotation and the ternary product."""

    def expert(self, x: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        u = F.gelu(self.multiply(self.rotate(x, theta) + self.extra[0, :WIDTH]))
        return self.down(self.rotate(u, phi))


class ActivationInFront(Gathered):
    """An activation between the input rotation and the ternary product."""

    def multiply(self, x: Tensor) -> Tensor:
        return super().multiply(F.relu(x))


class UnusedNumbers(Gathered):
    """Gates that are used, numbers of experts that are not."""

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x).topk(CHOSEN, -1).values


class DeepCutOff(CutOff):
    """Leading blocks of padded rotations of five layers, which do not determine these."""

    depth = 5


NONE = [
    (Leaking, "rebuilt, it differs by"),
    (LeakingMask, "rebuilt, it differs by"),
    (OwnDownByThreshold, "no matrix that all experts share"),
    (RoundedScores, "equal scores cannot be ruled out"),
    (ClippedScores, "equal scores cannot be ruled out"),
    (FewPlaces, "needs 'x' by a way past its experts"),
    (Unsure, "needs 'x' by a way past its experts"),
    (InTurn, "nothing behind the routing"),
    (Overwritten, "do nothing"),
    (LargestResult, "nothing behind the routing"),
    (InterpolatedAngles, "nothing behind the routing"),
    (FixedMixture, "nothing behind the routing"),
    (TwoScales, "do not share their ternary matrix"),
    (SumOfMasks, "do not share their ternary matrix"),
    (DeepCutOff, "may be 24 channels of a padded rotation of 32"),
    (OwnUpBias, "do not share the bias"),
    (OneExpert, "reach 1 of 4 experts"),
    (MissingExpert, "of 4 experts, 1 do nothing: 3"),
    (MixedTokens, "the rows of the ternary product"),
    (ShiftedTokens, "the rows of the ternary product"),
    (GroupedSubstrate, "along another axis"),
    (GroupedDown, "does not read the experts' rows"),
    (EarlyGates, "the gates enter in front"),
    (InnerResidual, "needs 'x' by a way past its experts"),
    (BiasInFront, "adds a bias in front"),
    (ActivationInFront, "an activation in front"),
    (UnusedNumbers, "are not used"),
    (FiveLevels, "3 magnitudes in place of 0 and one scale"),
    (DenseSubstrate, "a dense matrix"),
    (OwnDown, "no matrix that all experts share"),
    (OwnDownLoop, "W_down is not shared"),
    (OwnSubstrate, "do not share their ternary matrix"),
    (OwnBias, "not gate times one shared map"),
    (OwnScale, "not gate times one shared map"),
    (GatedInput, "nothing behind the routing"),
    (SoftAngles, "nothing behind the routing"),
    (QuantisedActivations, "not linear"),
    (NormBetween, "not linear"),
    (ActivationBetween, "between two layers of the rotation"),
    (Clamped, "linear for values near 1 only"),
    (ClampedMatrices, "linear for values near 1 only"),
    (ClampedResult, "not gate times one shared map"),
    (Shrunk, "linear for values near 1 only"),
    (NumbersOutOfReach, "looked up that does not exist"),
    (TwoActivations, "several activations"),
    (PlaceDependent, "rebuilt, it differs by"),
    (TooFewExperts, "chooses among 6 experts, but only 4 exist"),
    (StandardExperts, "no product with a constant matrix"),
]


@pytest.mark.parametrize(("kind", "reason"), NONE)
def test_lookalikes_stay_as_they_are(kind: type[Gathered], reason: str) -> None:
    """What is no Butterfly layer keeps its plain ops, and the report says why."""
    report, difference = recognised(kind)
    assert report.recognised == "none"
    assert reason in report.reason
    assert difference == 0
