"""Butterfly layers whose rows come to their experts by counts, bounds and orders."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .test_recognise_styles import CHOSEN, EXPERTS, TOKENS, Gathered, ternary


class JoinedCounts(Gathered):
    """The best expert of each row, then the next; rows of both sorted, split by Python's counts."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        first = scores.argmax(-1)
        rest = scores.masked_fill(F.one_hot(first, EXPERTS).bool(), -torch.inf)
        experts = torch.cat([first, rest.argmax(-1)])
        token = torch.arange(TOKENS).repeat(2)
        order = experts.argsort()
        counts = torch.bincount(experts, minlength=EXPERTS).tolist()
        parts = x[token[order]].split(counts)
        out = [self.expert(part, self.theta[e], self.phi[e]) for e, part in enumerate(parts)]
        gates = scores[token, experts][order]
        return torch.zeros_like(x).index_add(0, token[order], torch.cat(out) * gates[:, None])


class InPieces(Gathered):
    """Rows sorted by expert, in pieces between places that `pieces` tells, and added back."""

    def pieces(self, experts: Tensor) -> list[tuple[int, Any, Any]]:
        """Each expert, and where its rows start and stop among sorted ``experts`` [T k]."""
        stops = torch.bincount(experts, minlength=EXPERTS).cumsum(0).tolist()
        return [(e, start, stop) for e, (start, stop) in enumerate(pairwise([0, *stops]))]

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        numbers, order = experts.flatten().sort(stable=True)
        y = torch.zeros_like(x)
        for e, start, stop in self.pieces(numbers):
            place = order[start:stop]
            token = place // CHOSEN
            part = self.expert(x[token], self.theta[e], self.phi[e])
            y = y.index_add(0, token, part * gates.flatten()[place, None])
        return y


class SearchedBounds(InPieces):
    """Rows sorted by expert, cut where searchsorted finds each number."""

    def pieces(self, experts: Tensor) -> list[tuple[int, Any, Any]]:
        bounds = torch.searchsorted(experts, torch.arange(EXPERTS + 1)).tolist()
        return [(e, start, stop) for e, (start, stop) in enumerate(pairwise(bounds))]


class Runs(InPieces):
    """Rows sorted by expert, in the runs of equal numbers that unique_consecutive tells."""

    def pieces(self, experts: Tensor) -> list[tuple[int, Any, Any]]:
        numbers, counts = torch.unique_consecutive(experts, return_counts=True)
        found, start = [], 0
        for e, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            found.append((e, start, start + count))
            start = start + count
        return found


class Histogram(InPieces):
    """Rows sorted by expert, counted with histc."""

    def pieces(self, experts: Tensor) -> list[tuple[int, Any, Any]]:
        counts = torch.histc(experts.float(), bins=EXPERTS, min=0, max=EXPERTS - 1)
        stops = counts.int().cumsum(0).tolist()
        return [(e, start, stop) for e, (start, stop) in enumerate(pairwise([0, *stops]))]


class SplitAtPlaces(Gathered):
    """Rows sorted by expert, split with tensor_split at the running sum of their counts."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        numbers, order = experts.flatten().sort(stable=True)
        stops = torch.bincount(numbers, minlength=EXPERTS).cumsum(0)
        parts = torch.tensor_split(x[order // CHOSEN], stops[:-1])
        out = [self.expert(part, self.theta[e], self.phi[e]) for e, part in enumerate(parts)]
        rows = torch.cat(out) * gates.flatten()[order, None]
        return torch.zeros_like(x).index_add(0, order // CHOSEN, rows)


class TokenByToken(Gathered):
    """One row after the other, in loops over tokens and slots, with the tables at its numbers."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        out = []
        for row, weights, numbers in zip(x, gates, experts, strict=True):
            parts = (self.expert(row, self.theta[e], self.phi[e]) for e in numbers)
            out.append(sum(w * part for w, part in zip(weights, parts, strict=True)))
        return torch.stack(out)


class WrittenByMask(Gathered):
    """The rows of one expert after the other written with masked_scatter, weighed at the end."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.gate(x).softmax(-1).max(-1)
        y = torch.zeros_like(x)
        for e in range(EXPERTS):
            mask = experts == e
            y = y.masked_scatter(mask[:, None], self.expert(x[mask], self.theta[e], self.phi[e]))
        return y * gates[:, None]


class KeptByWhere(Gathered):
    """All rows through one expert after the other, kept with `where`, weighed at the end."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.gate(x).softmax(-1).max(-1)
        y = torch.zeros_like(x)
        for e in range(EXPERTS):
            part = self.expert(x, self.theta[e], self.phi[e])
            y = torch.where((experts == e)[:, None], part, y)
        return gates[:, None] * y


class _Expert(nn.Module):
    """Angles that `functional_call` puts in place."""

    def __init__(self, layer: Gathered, e: int) -> None:
        super().__init__()
        self.theta, self.phi = nn.Parameter(layer.theta[e]), nn.Parameter(layer.phi[e])

    def forward(self, run: Any, x: Tensor) -> Tensor:
        return run(x, self.theta, self.phi)


class FunctionalCalls(Gathered):
    """torch.func.functional_call of one module with the stacked parameters of all, under vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(_Expert(self, e) for e in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        stacked, _ = torch.func.stack_module_state(list(self.experts))

        def call(parameters: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(self.experts[0], parameters, (self.expert, x))

        every = torch.vmap(call)(stacked)  # [E, T, d]
        dense = torch.zeros(TOKENS, EXPERTS).scatter(1, experts, gates)
        return torch.einsum("te,etd->td", dense, every)


class ExpertsInUse(Gathered):
    """A loop over the experts that have rows, by nonzero of their counts, as transformers does."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = torch.zeros_like(x)
        mask = F.one_hot(experts, EXPERTS).permute(2, 1, 0)
        for hit in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
            slot, token = torch.where(mask[hit[0]])
            part = self.expert(x[token], self.theta[hit[0]], self.phi[hit[0]])
            y.index_add_(0, token, part * gates[token, slot, None])
        return y


class Cloned(Gathered):
    """Rows of a copy of x, each overwritten by its expert's result."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.gate(x).softmax(-1).max(-1)
        y = x.clone()
        for e in range(EXPERTS):
            rows = experts == e
            y[rows] = self.expert(x[rows], self.theta[e], self.phi[e])
        return y * gates[:, None]


class RowsInPlace(Gathered):
    """A row for each (token, slot), overwritten in place by one expert after the other."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        rows, numbers = x.repeat_interleave(CHOSEN, 0), experts.flatten()
        for e in range(EXPERTS):
            mask = numbers == e
            rows[mask] = self.expert(rows[mask], self.theta[e], self.phi[e])
        return (rows.unflatten(0, (-1, CHOSEN)) * gates[..., None]).sum(1)


class SlabsInPlace(Gathered):
    """A slab of rows for each expert, overwritten in place by its results."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        sent = F.one_hot(experts, EXPERTS).sum(1).to(x.dtype)
        slabs = torch.einsum("te,td->etd", sent, x).contiguous()
        for e in range(EXPERTS):
            slabs[e] = self.expert(slabs[e], self.theta[e], self.phi[e])
        dense = torch.zeros(TOKENS, EXPERTS).scatter(1, experts, gates)
        return torch.einsum("te,etd->td", dense, slabs)


class MatrixForEach(Gathered):
    """The shared matrices stacked for all experts, and gathered with the angles by number."""

    def chosen(self, x: Tensor, experts: Tensor) -> Tensor:
        rows = self.rotate(x[:, None].expand(-1, CHOSEN, -1), self.theta[experts])
        up = torch.stack([ternary(self.up)] * EXPERTS)[experts]  # [T, k, F, d]
        rows = self.rotate(F.gelu(torch.einsum("tkfd,tkd->tkf", up, rows)), self.phi[experts])
        down = self.down.weight.expand(EXPERTS, -1, -1)[experts]
        return torch.einsum("tkdf,tkf->tkd", down, rows) + self.down.bias


class SideBySide(Gathered):
    """Weighed rows of all experts side by side, times the shared matrix as often as there are."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        every = torch.zeros(TOKENS, EXPERTS).scatter(1, experts, gates)
        rows = [self.hidden(x, self.theta[e], self.phi[e]) for e in range(EXPERTS)]
        beside = torch.cat([every[:, e, None] * row for e, row in enumerate(rows)], -1)
        return F.linear(beside, self.down.weight.repeat(1, EXPERTS), self.down.bias)
