"""Butterfly layers whose rows come to their experts by counts, bounds and orders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .test_recognise_styles import EXPERTS, TOKENS, Gathered


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
