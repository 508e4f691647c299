"""Butterfly layers whose rows lie elsewhere: along other axes, sorted, of all experts."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from .forms_of_dispatch import (
    Cloned,
    ExpertsInUse,
    FunctionalCalls,
    Histogram,
    InPieces,
    JoinedCounts,
    KeptByWhere,
    MatrixForEach,
    RowsInPlace,
    Runs,
    SearchedBounds,
    SideBySide,
    SlabsInPlace,
    SplitAtPlaces,
    TokenByToken,
    WrittenByMask,
)
from .forms_of_rotations import (
    Blocked,
    BySums,
    ChosenExponentials,
    ChosenMatrices,
    Complex,
    Convolved,
    CutOff,
    DeepMatrices,
    Exponentials,
    Halves,
    Matrices,
    Mirrors,
    Recursive,
    Shears,
    Sliced,
    SlicedColumns,
    Strides,
    Tables,
    WholeExperts,
)
from .forms_of_routers import (
    AboveNext,
    BestByThreshold,
    ByRank,
    DenseArgmax,
    DenseGates,
    Grouped,
    Halved,
    Interpolated,
    KthValue,
    Lowest,
    Nearest,
    OneOrTwo,
    RowsOfTheBest,
    SparseMixer,
    Threshold,
    Twice,
    Unbeaten,
)
from .test_recognise_styles import (
    CHOSEN,
    EXPERTS,
    HIDDEN,
    LAYERS,
    ROUNDING,
    TOKENS,
    WIDTH,
    Gathered,
    recognised,
    ternary,
)

# --- dispatch ---


class SlotsTimesExperts(Gathered):
    """A loop over slots around a loop over experts, each with a mask."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = torch.zeros_like(x)
        for i in range(CHOSEN):
            for e in range(EXPERTS):
                weight = torch.where(experts[:, i] == e, gates[:, i], 0.0)[:, None]
                y = y + weight * self.expert(x, self.theta[e], self.phi[e])
        return y


class PartsTimesExperts(Gathered):
    """A loop over two parts of the batch around a loop over experts."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        parts = []
        for rows in (slice(0, 3), slice(3, TOKENS)):
            y = torch.zeros_like(x[rows])
            for e in range(EXPERTS):
                weight = torch.where(experts[rows] == e, gates[rows], 0.0).sum(-1, keepdim=True)
                y = y + weight * self.expert(x[rows], self.theta[e], self.phi[e])
            parts.append(y)
        return torch.cat(parts)


class Selected(Gathered):
    """Rows chosen by a mask, and added back with index_add."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = torch.zeros_like(x)
        for e in range(EXPERTS):
            rows, slots = torch.where(experts == e)
            part = self.expert(x[rows], self.theta[e], self.phi[e]) * gates[rows, slots, None]
            y = y.index_add(0, rows, part)
        return y


class ByColumns(Gathered):
    """Rows chosen by a mask, weighed by their expert's column of the scores of all."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        experts = scores.topk(CHOSEN, -1).indices
        y = torch.zeros_like(x)
        for e in range(EXPERTS):
            rows = (experts == e).any(-1).nonzero()[:, 0]
            part = self.expert(x[rows], self.theta[e], self.phi[e])
            y = y.index_add(0, rows, scores[rows, e, None] * part)
        return y


class Slabs(Gathered):
    """(Token, slot) rows sorted by expert, in slabs of one size, and put back."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        numbers, order = experts.flatten().sort(stable=True)
        token = order // CHOSEN
        counts = F.one_hot(numbers, EXPERTS).sum(0)
        place = torch.arange(TOKENS * CHOSEN) - (counts.cumsum(0) - counts)[numbers]
        slabs = x.new_zeros(EXPERTS, TOKENS, WIDTH).index_put((numbers, place), x[token])
        out = self.expert(slabs, self.theta[:, None], self.phi[:, None])
        rows = out[numbers, place] * gates.flatten()[order, None]
        return torch.zeros_like(x).index_add(0, token, rows)


class Bins(Gathered):
    """Rows gathered into bins as long as all chosen rows, where the counts are a bincount."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        numbers, order = experts.flatten().sort(stable=True)
        counts = torch.bincount(experts.flatten(), minlength=EXPERTS)
        place = torch.arange(TOKENS * CHOSEN) - (counts.cumsum(0) - counts)[numbers]
        bins = x.new_zeros(EXPERTS, TOKENS * CHOSEN, WIDTH)
        bins[numbers, place] = x[order // CHOSEN]
        out = self.expert(bins, self.theta[:, None], self.phi[:, None])
        rows = torch.zeros(TOKENS * CHOSEN, WIDTH)
        rows[order] = out[numbers, place]
        return (rows.unflatten(0, (TOKENS, CHOSEN)) * gates[..., None]).sum(1)


class DispatchTensors(Gathered):
    """One-hot tensors [T, E, C] carry rows to experts and back, with room for all."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        hot = F.one_hot(experts, EXPERTS)  # [T, k, E]
        place = (hot.flatten(0, 1).cumsum(0) - 1).unflatten(0, (TOKENS, CHOSEN))
        room = F.one_hot((place * hot).sum(-1), TOKENS * CHOSEN).to(x.dtype)
        to = torch.einsum("tke,tkc->tec", hot.to(x.dtype), room)
        back = torch.einsum("tk,tke,tkc->tec", gates, hot.to(x.dtype), room)
        rows = torch.einsum("tec,td->ecd", to, x)
        out = self.expert(rows, self.theta[:, None], self.phi[:, None])
        return torch.einsum("tec,ecd->td", back, out)


class Vmapped(Gathered):
    """torch.vmap over the experts' angles."""

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        dense = torch.zeros(TOKENS, EXPERTS).scatter(1, experts, gates)
        every = torch.vmap(self.expert, in_dims=(None, 0, 0))(x, self.theta, self.phi)
        return torch.einsum("te,etd->td", dense, every)


# --- axes ---


class ChannelsFirst(Gathered):
    """Channels are the first axis: the matrices stand on the left of their products."""

    def rotate_columns(self, x: Tensor, angles: Tensor) -> Tensor:
        for i in range(LAYERS):
            cos, sin = angles[i].cos()[:, None], angles[i].sin()[:, None]
            a, b = x[0::2], x[1::2]
            x = torch.stack([a * cos - b * sin, a * sin + b * cos], 1).flatten(0, 1)
            x = torch.cat([x[0::2], x[1::2]])
        return x

    def forward(self, x: Tensor) -> Tensor:
        gates, experts = self.route(x)
        y = torch.zeros(WIDTH, TOKENS)
        for e in range(EXPERTS):
            u = ternary(self.up) @ self.rotate_columns(x.T, self.theta[e])
            u = self.down.weight @ self.rotate_columns(F.gelu(u), self.phi[e])
            y = y + torch.where(experts == e, gates, 0.0).sum(-1) * (u + self.down.bias[:, None])
        return y.T


class Pointwise(Gathered):
    """A map of pixels: the router, W_hat and W_down are convolutions of 1 x 1."""

    def rotate_map(self, x: Tensor, angles: Tensor) -> Tensor:
        for i in range(LAYERS):
            cos, sin = angles[i].cos()[:, None, None], angles[i].sin()[:, None, None]
            a, b = x[:, 0::2], x[:, 1::2]
            x = torch.cat([a * cos - b * sin, a * sin + b * cos], 1)
        return x

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.T.reshape(1, WIDTH, 1, TOKENS)
        scores = F.conv2d(pixels, self.gate.weight[..., None, None], self.gate.bias).sigmoid()
        gates = scores * (scores >= scores.topk(CHOSEN, 1).values[:, -1:])
        y = torch.zeros_like(pixels)
        for e in range(EXPERTS):
            u = F.conv2d(self.rotate_map(pixels, self.theta[e]), ternary(self.up)[..., None, None])
            u = self.rotate_map(F.gelu(u), self.phi[e])
            u = F.conv2d(u, self.down.weight[..., None, None], self.down.bias)
            y = y + gates[:, e : e + 1] * u
        return y.reshape(WIDTH, TOKENS).T


# --- matrices, scales and biases ---


class CodesThenScale(Gathered):
    """Ternary codes as int8, the scale of each row applied to the result."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", (self.up.detach() / 0.2).round().clamp(-1, 1).to(torch.int8))
        self.register_buffer("scale", torch.rand(HIDDEN) + 0.5)

    def multiply(self, x: Tensor) -> Tensor:
        return F.linear(x, self.codes.to(x.dtype)) * self.scale


class ScaledDown(Gathered):
    """W_down ternary too, its scale and bias applied to the result."""

    def expert(self, x: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        codes = (self.down.weight / 0.1).round().clamp(-1, 1)
        return F.linear(self.hidden(x, theta, phi), codes) * 0.1 + self.down.bias


class PlusMinus(Gathered):
    """The ternary product as one with zeros and ones minus another."""

    def multiply(self, x: Tensor) -> Tensor:
        plus, minus = (self.up > 0.1).to(x.dtype), (self.up < -0.1).to(x.dtype)
        return 0.2 * (F.linear(x, plus) - F.linear(x, minus))


class PlusMinusHalves(Gathered):
    """One product whose first half of columns counts up, and the second one down."""

    def multiply(self, x: Tensor) -> Tensor:
        both = torch.cat([self.up > 0.1, self.up < -0.1]).to(x.dtype)
        up, down = F.linear(x, 0.2 * both).chunk(2, -1)
        return up - down


class LateScale(Gathered):
    """The one scale of W_hat applied behind the rotation."""

    def hidden(self, x: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        gamma = self.up.abs().mean()
        codes = (self.up / (gamma + 1e-8)).round().clamp(-1, 1)
        return F.gelu(self.rotate(F.linear(self.rotate(x, theta), codes), phi) * gamma)


class LateBias(Gathered):
    """A bias between the output rotation and the activation."""

    def hidden(self, x: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        return F.gelu(self.rotate(self.multiply(self.rotate(x, theta)), phi) + self.extra[0])


class ScaledInput(Gathered):
    """All channels times one number in front of the rotation."""

    def chosen(self, x: Tensor, experts: Tensor) -> Tensor:
        return super().chosen(x * 0.5, experts)


# --- around the layer ---


class WiderRouter(Gathered):
    """A router that reads more than the experts do: x as well as a norm of it."""

    def weights(self, x: Tensor, norm: Tensor) -> Tensor:
        scores = (self.gate(norm) + x[:, :EXPERTS]).softmax(-1)
        chosen = F.one_hot(scores.topk(CHOSEN, -1).indices, EXPERTS).sum(-2)
        return scores * chosen.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        norm = F.layer_norm(x, (WIDTH,))
        every = self.expert(norm, self.theta[:, None], self.phi[:, None])  # [E, T, d]
        return torch.einsum("te,etd->td", self.weights(x, norm), every)


class WiderThreshold(WiderRouter):
    """A threshold of the scores of a router that reads more than the experts do."""

    def weights(self, x: Tensor, norm: Tensor) -> Tensor:
        scores = (self.gate(norm) + x[:, :EXPERTS]).softmax(-1)
        return scores * (scores >= scores.amax(-1, keepdim=True))


# As FULL of test_recognise_styles.
FORMS: dict[str, list[type[Gathered]]] = {
    "routing": [
        DenseGates, Threshold, KthValue, AboveNext, BestByThreshold, RowsOfTheBest, ByRank,
        Unbeaten, Lowest, Nearest, Grouped, Halved, Interpolated, OneOrTwo, SparseMixer,
        DenseArgmax, Twice,
    ],
    "dispatch": [
        SlotsTimesExperts, PartsTimesExperts, Selected, ByColumns, ExpertsInUse, KeptByWhere,
        MatrixForEach, SideBySide,
        WrittenByMask, Cloned, RowsInPlace, SlabsInPlace,
        InPieces, SearchedBounds, Runs, Histogram, SplitAtPlaces, JoinedCounts, TokenByToken,
        Slabs, Bins, DispatchTensors, Vmapped, FunctionalCalls,
    ],
    "around the layer": [WiderRouter, WiderThreshold],
    "axes": [ChannelsFirst, Pointwise],
    "rotations": [
        Matrices, DeepMatrices, WholeExperts, ChosenMatrices, BySums, Blocked, Sliced,
        SlicedColumns, CutOff, Complex, Strides, Recursive, Tables, Convolved, Shears, Mirrors,
        Exponentials, ChosenExponentials, Halves,
    ],
    "matrices, scales and biases": [
        CodesThenScale, PlusMinus, PlusMinusHalves, ScaledDown, LateScale, LateBias, ScaledInput,
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", [*chain(*FORMS.values())])
def test_other_forms_are_recognised_in_full(kind: type[Gathered]) -> None:
    """Wherever its rows lie, the layer is found with all its experts, and computes the same."""
    report, difference = recognised(kind)
    assert (report.recognised, report.reason) == ("full", "")
    assert report.experts_found == report.experts == EXPERTS
    assert difference < ROUNDING


def test_a_threshold_says_what_it_does_with_equal_scores() -> None:
    """Scores that tie at the k-th place are all taken by the model; the report says otherwise."""
    report, _ = recognised(Threshold)
    assert "of equal ones the first are taken" in report.parts["routing"]
