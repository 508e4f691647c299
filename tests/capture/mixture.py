"""A mixture of experts whose way to send the tokens is given, and inputs that leave some idle."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.ir.interpret import interpret

EXPERTS, TOKENS, WIDTH, K = 5, 7, 6, 2


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Mixture(nn.Module):
    """Experts, a router, and a way to send the tokens that is a function of a test."""

    def __init__(self, send: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))
        self.scales = nn.Parameter(1 + torch.rand(EXPERTS, WIDTH))
        self.send = send

    def forward(self, x: Tensor) -> Tensor:
        weight, index = self.router(x).softmax(-1).topk(K, dim=-1)
        return self.send(self, x, weight, index)


def inputs() -> list[Tensor]:
    """Ten inputs: some use all experts, in some all tokens are one and the same."""
    source = torch.Generator().manual_seed(1)
    plain = [3 * torch.randn(TOKENS, WIDTH, generator=source) for _ in range(5)]
    same = [3 * torch.randn(1, WIDTH, generator=source).expand(TOKENS, -1) for _ in range(3)]
    few = [torch.cat([x[:1].repeat(TOKENS - 1, 1), x[1:2]]) for x in plain[:2]]
    return [*plain, *(x.contiguous() for x in same), *few]


def agree_on_all_inputs(form: Callable[..., Tensor]) -> None:
    """Asserts that the captured mixture agrees with its model, in double precision."""
    module = Mixture(form).eval()
    graph = capture(module, (inputs()[0],)).graph
    double = copy.deepcopy(module).double()
    used = set()
    for x in inputs():
        (got,) = interpret(graph, x.numpy())
        with torch.no_grad():
            want = double(x.double()).numpy()
            used.add(len(module.router(x).topk(K).indices.unique()))
        assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max()
    assert {K, EXPERTS} <= used, "inputs that use few experts, and inputs that use all"
