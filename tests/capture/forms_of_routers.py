"""Butterfly layers whose experts are chosen by masks, thresholds and ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .test_recognise_styles import CHOSEN, EXPERTS, TOKENS, WIDTH, Gathered


class DenseGates(Gathered):
    """All experts run, weighed by the scores of all experts times a mask of the chosen."""

    def weights(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        chosen = F.one_hot(scores.topk(CHOSEN, -1).indices, EXPERTS).sum(-2)
        return scores * chosen.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        every = self.expert(x, self.theta[:, None], self.phi[:, None])  # [E, T, d]
        return torch.einsum("te,etd->td", self.weights(x), every)


class Threshold(DenseGates):
    """The gates are the scores that reach the k-th largest; no expert numbers are used."""

    def weights(self, x: Tensor) -> Tensor:
        scores = self.gate(x).sigmoid()
        return torch.where(scores >= scores.topk(CHOSEN, -1).values[:, -1:], scores, 0.0)


class KthValue(DenseGates):
    """The gates are the scores that reach the k-th largest, by kthvalue."""

    def weights(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        last = scores.kthvalue(EXPERTS - CHOSEN + 1, dim=-1, keepdim=True).values
        return scores.masked_fill(scores < last, 0.0)


class AboveNext(DenseGates):
    """The gates are the scores above the first one that is not chosen."""

    def weights(self, x: Tensor) -> Tensor:
        scores = self.gate(x)
        others = scores.sort(-1).values[:, -CHOSEN - 1, None]
        return scores.masked_fill(scores <= others, -torch.inf).softmax(-1)


class BestByThreshold(DenseGates):
    """The best expert by a threshold at the largest score; no number is computed."""

    def weights(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        return torch.where(scores >= scores.max(-1).values[:, None], scores, 0.0)


class RowsOfTheBest(Gathered):
    """The rows whose score of an expert is their largest one, expert by expert."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        best = scores.amax(-1)
        y = torch.zeros_like(x)
        for e in range(EXPERTS):
            rows = (scores[:, e] == best).nonzero()[:, 0]
            y[rows] = self.expert(x[rows], self.theta[e], self.phi[e]) * best[rows, None]
        return y


class ByRank(DenseGates):
    """Experts whose rank, by argsort of argsort, is below k."""

    def weights(self, x: Tensor) -> Tensor:
        scores = self.gate(x).sigmoid()
        rank = scores.argsort(-1, descending=True).argsort(-1)
        return scores * (rank < CHOSEN)


class Unbeaten(DenseGates):
    """Experts that fewer than k others beat, by comparing all scores with each other."""

    def weights(self, x: Tensor) -> Tensor:
        scores = self.gate(x).sigmoid()
        better = (scores[:, None, :] > scores[:, :, None]).sum(-1)
        gates = scores * (better < CHOSEN)
        return gates / gates.sum(-1, keepdim=True)


class Nearest(Gathered):
    """The expert with the nearest centre by `min`, its gate a function of the distance."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(EXPERTS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        distances, experts = (x[:, None] - self.centres).square().sum(-1).min(-1)
        gates = torch.exp(-0.1 * distances)
        return self.expert(x, self.theta[experts], self.phi[experts]) * gates[:, None]


class DenseArgmax(DenseGates):
    """The winner is picked with a one-hot of the argmax, weighed by a sigmoid."""

    def weights(self, x: Tensor) -> Tensor:
        scores = self.gate(x)
        return F.one_hot(scores.argmax(-1), EXPERTS) * scores.sigmoid()


class Twice(Gathered):
    """The best expert by argmax, the next by argmax of what is left; rows sent where gates are."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        first = F.one_hot(scores.argmax(-1), EXPERTS).to(x.dtype)
        second = F.one_hot((scores * (1 - first)).argmax(-1), EXPERTS).to(x.dtype)
        gates = [(scores * mask).sum(-1) for mask in (first, second)]
        both = torch.stack(gates, -1).sum(-1)
        room = torch.eye(TOKENS)
        back = sum(
            torch.einsum("t,te,tc->tec", gate / both, mask, room)
            for gate, mask in zip(gates, (first, second), strict=True)
        )
        rows = torch.einsum("tec,td->ecd", (back > 0).to(x.dtype), x)
        out = self.expert(rows, self.theta[:, None], self.phi[:, None])
        return torch.einsum("tec,ecd->td", back, out)


class Grouped(Gathered):
    """A group is chosen first, then experts in it by scores with a bias that gates do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(EXPERTS) * 0.1)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.gate(x).sigmoid()
        biased = scores + self.bias
        best = biased.unflatten(-1, (2, -1)).sum(-1).topk(1, -1).indices
        kept = torch.zeros(TOKENS, 2).scatter(1, best, 1.0).repeat_interleave(EXPERTS // 2, -1)
        experts = biased.masked_fill(kept == 0, -torch.inf).topk(CHOSEN, -1, sorted=False).indices
        gates = scores.gather(1, experts)
        return gates / (gates.sum(-1, keepdim=True) + 1e-20), experts


class Halved(Gathered):
    """Two gates w and 1 - w, each times the rows of its expert."""

    def mixed(self, a: Tensor, b: Tensor, w: Tensor) -> Tensor:
        return w * a + (1 - w) * b

    def forward(self, x: Tensor) -> Tensor:
        values, experts = self.gate(x).topk(2, -1)
        rows = (self.expert(x, self.theta[e], self.phi[e]) for e in experts.unbind(-1))
        return self.mixed(*rows, torch.sigmoid(values[:, :1] - values[:, 1:]))


class Interpolated(Halved):
    """The two best experts interpolated by one gate, `torch.lerp`."""

    def mixed(self, a: Tensor, b: Tensor, w: Tensor) -> Tensor:
        return torch.lerp(b, a, w)


class Lowest(Gathered):
    """The experts of lowest energy, by a sort of what is the negative of the scores."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energies, experts = (-self.gate(x)).sort(-1)
        return (-energies[:, :CHOSEN]).softmax(-1), experts[:, :CHOSEN]


class SparseMixer(Gathered):
    """Each gate a softmax over the scores near its own, the best one left out for the second."""

    def near(self, scores: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        largest, expert = left.max(-1, keepdim=True)
        far = (largest - scores) / scores.abs().clamp(min=largest) > 0.02
        return left.masked_fill(far, -torch.inf).softmax(-1).gather(-1, expert), expert

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.gate(x)
        first, best = self.near(scores, scores)
        second, next_best = self.near(scores, scores.scatter(-1, best, -torch.inf))
        return torch.cat([first, second], -1), torch.cat([best, next_best], -1)


class OneOrTwo(DenseGates):
    """The second expert counts where its score is above half of the best one's."""

    def weights(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        best, second = scores.topk(2, -1).values.split(1, -1)
        both = (scores >= best) | (second > 0.5 * best)
        return scores * (scores >= second) * both
