"""What is nearly a Butterfly layer for the way in which its experts are chosen or weighed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms_of_routers import BestByThreshold
from .test_recognise_forms import WiderRouter
from .test_recognise_styles import CHOSEN, EXPERTS, TOKENS, WIDTH, Gathered


class Leaking(Gathered):
    """Experts that are not chosen count for a thousandth of their scores."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        experts = scores.topk(CHOSEN, -1).indices
        y = torch.zeros_like(x)
        for e in range(EXPERTS):
            part = scores[:, e, None] * self.expert(x, self.theta[e], self.phi[e])
            y = y + torch.where((experts == e).any(-1, keepdim=True), part, 0.001 * part)
        return y


class LeakingMask(WiderRouter):
    """A mask that leaves a thousandth, of a router that reads more than the experts do."""

    def weights(self, x: Tensor, norm: Tensor) -> Tensor:
        scores = (self.gate(norm) + x[:, :EXPERTS]).softmax(-1)
        chosen = F.one_hot(scores.topk(CHOSEN, -1).indices, EXPERTS).sum(-2)
        return scores * (0.001 + 0.999 * chosen.to(x.dtype))


class OwnDownByThreshold(BestByThreshold):
    """A threshold at the largest score, in front of experts with matrices of their own."""

    def expert(self, x: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        own = self.extra[:, :WIDTH, None] * self.down.weight  # [E, d, F]
        return torch.einsum("edf,etf->etd", own, self.hidden(x, theta, phi))


class RoundedScores(BestByThreshold):
    """A threshold at the largest of rounded scores, which several experts often have."""

    def weights(self, x: Tensor) -> Tensor:
        scores = (2 * self.gate(x)).round()
        return self.gate(x).softmax(-1) * (scores >= scores.amax(-1, keepdim=True))


class ClippedScores(BestByThreshold):
    """A threshold at the k-th largest score, of which many are zero, and all of these count."""

    def weights(self, x: Tensor) -> Tensor:
        scores = self.gate(x).relu()
        return (1 + scores) * (scores >= scores.topk(CHOSEN, -1).values[:, -1:])


class Overwritten(Gathered):
    """Where a row has two experts, the result of the later one is kept alone."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = torch.zeros_like(x)
        for e in range(EXPERTS):
            token, slot = torch.where(experts == e)
            part = self.expert(x[token], self.theta[e], self.phi[e])
            y = y.index_put((token,), part * gates[token, slot, None])
        return y


class LargestResult(Gathered):
    """The largest of the chosen experts' results in place of their sum, by scatter_reduce."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        rows = self.chosen(x, experts) * gates[..., None]
        token = torch.arange(TOKENS).repeat_interleave(CHOSEN)[:, None].expand(-1, WIDTH)
        lowest = torch.full_like(x, -1e9)
        return lowest.scatter_reduce(0, token, rows.flatten(0, 1), "amax")


class InterpolatedAngles(Gathered):
    """Angles, not results, interpolated between the two best experts."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        w = gates[:, 1, None, None]
        tables = (table[experts] for table in (self.theta, self.phi))
        return self.expert(x, *(torch.lerp(table[:, 0], table[:, 1], w) for table in tables))


class FixedMixture(Gathered):
    """Two experts interpolated by a number that is the same for all."""

    def forward(self, x: Tensor) -> Tensor:
        _, experts = self.route(x)
        rows = (self.expert(x, self.theta[e], self.phi[e]) for e in experts.unbind(-1))
        return torch.lerp(*rows, 0.3)


class FewPlaces(Gathered):
    """An expert serves three tokens at most, and the others keep x: no gate leaves these out."""

    def served(self, experts: Tensor, gates: Tensor) -> Tensor:
        hot = F.one_hot(experts, EXPERTS)
        return (hot * (hot.cumsum(0) <= 3)).bool()

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.gate(x).softmax(-1).max(-1)
        served = self.served(experts, gates)
        y = x.clone()
        for e in range(EXPERTS):
            rows = served[:, e]
            y[rows] = self.expert(x[rows], self.theta[e], self.phi[e])
        return y * gates[:, None]


class Unsure(FewPlaces):
    """Tokens with a gate near the least that there may be keep x."""

    def served(self, experts: Tensor, gates: Tensor) -> Tensor:
        return F.one_hot(experts, EXPERTS).bool() & (gates > 0.26)[:, None]


class InTurn(Gathered):
    """The second expert of a row reads what the first one left in its place."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = x.clone()
        for slot in range(CHOSEN):
            for e in range(EXPERTS):
                rows = experts[:, slot] == e
                part = self.expert(y[rows], self.theta[e], self.phi[e])
                y[rows] = part * gates[rows, slot, None]
        return y
