"""The ordinary mixture of experts: every expert owns two dense matrices. Our baselines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compiler.errors import UsageError, unknown_name
from .routing import GATE_RULES, GateRule, choose

Dispatch = Literal["loop", "sorted", "grouped"]


@dataclass(frozen=True)
class StandardConfig:
    """``dispatch``: how tokens reach their experts; every way computes the same.

    ``loop`` gathers each expert's tokens and adds them back; ``sorted`` sorts all tokens by expert
    once and splits; ``grouped`` sorts too and leaves all experts to one grouped product.
    """

    d_model: int = 256
    d_ff: int = 1024
    experts: int = 8
    top_k: int = 2
    gate: GateRule = "raw"
    dispatch: Dispatch = "sorted"

    def __post_init__(self) -> None:
        if self.gate not in GATE_RULES:
            raise unknown_name("gate rule", str(self.gate), GATE_RULES)
        if self.dispatch not in get_args(Dispatch):
            raise unknown_name("dispatch", str(self.dispatch), get_args(Dispatch))
        if not 1 <= self.top_k <= self.experts:
            raise UsageError(
                f"top_k = {self.top_k} of {self.experts} experts",
                help="choose at least 1 expert a token and at most all of them",
            )


class StandardMoE(nn.Module):
    """expert_i = W2_i GELU(W1_i x + b1_i) + b2_i, for the top-k experts of each token."""

    def __init__(self, config: StandardConfig) -> None:
        super().__init__()
        self.config = config
        d, f, e = config.d_model, config.d_ff, config.experts
        self.gate = nn.Linear(d, e, bias=False)
        self.up = nn.Parameter(torch.empty(e, f, d))
        self.up_bias = nn.Parameter(torch.zeros(e, f))
        self.down = nn.Parameter(torch.empty(e, d, f))
        self.down_bias = nn.Parameter(torch.zeros(e, d))
        for matrix in (*self.up.unbind(), *self.down.unbind()):
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """The mixture for x: [..., d_model], same shape."""
        y, _ = self.with_logits(x)
        return y

    def with_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mixture [..., d_model] and the gate logits [..., E] that chose its experts."""
        logits: Tensor = self.gate(x)
        gates, experts = choose(logits.flatten(0, -2), self.config.top_k, self.config.gate)
        mix = {"loop": self._loop, "sorted": self._sorted, "grouped": self._grouped}
        y = mix[self.config.dispatch](x.flatten(0, -2), gates, experts)
        return torch.unflatten(y, 0, x.shape[:-1]), logits

    def expert(self, number: int, x: Tensor) -> Tensor:
        """One expert on rows x: [N, d]."""
        hidden = F.gelu(F.linear(x, self.up[number], self.up_bias[number]))
        return F.linear(hidden, self.down[number], self.down_bias[number])

    def _loop(self, x: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for number in range(self.config.experts):
            tokens, slots = (experts == number).nonzero(as_tuple=True)
            rows = self.expert(number, x[tokens]) * gates[tokens, slots].unsqueeze(-1)
            y.index_add_(0, tokens, rows)
        return y

    def _sorted(self, x: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
        order = experts.flatten().argsort()  # [T * k]
        counts = experts.flatten().bincount(minlength=self.config.experts).tolist()
        parts = torch.split(x[order // self.config.top_k], counts)
        rows = torch.cat([self.expert(number, part) for number, part in enumerate(parts)])
        return self._unsort(rows, order, gates)

    def _grouped(self, x: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
        sizes = F.one_hot(experts.flatten(), self.config.experts).sum(dim=0)
        ends = sizes.cumsum(dim=0).to(torch.int32)
        # Sorting the values too gives each row's expert, by which its biases are gathered.
        owner, order = experts.flatten().sort()
        rows = F.grouped_mm(x[order // self.config.top_k], self.up.mT, offs=ends)
        rows = F.gelu(rows + self.up_bias[owner])
        rows = F.grouped_mm(rows, self.down.mT, offs=ends) + self.down_bias[owner]
        return self._unsort(rows, order, gates)

    def _unsort(self, rows: Tensor, order: Tensor, gates: Tensor) -> Tensor:
        """Rows [T * k, d] in expert order to the gated sum [T, d]."""
        back = torch.empty_like(rows).index_copy(0, order, rows)
        return (torch.unflatten(back, 0, gates.shape) * gates.unsqueeze(-1)).sum(dim=1)
