"""Products of matrices taken apart: the same values, one factor after the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.recognise_probe import fold_constants
from butterflyc.compiler.capture.recognise_unfold import unfolded
from butterflyc.compiler.ir.interpret import interpret
from butterflyc.compiler.ir.verify import verify

E, A, B, C, T = 3, 4, 5, 6, 7


class Applied(nn.Module):
    """A function of rows x [T, C] and the factors u [E, A, B], w [B, B], v [E, B, C]."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.u = nn.Parameter(torch.randn(E, A, B))
        self.w = nn.Parameter(torch.randn(B, B))
        self.v = nn.Parameter(torch.randn(E, B, C))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.u, self.w, self.v)


def numbers(x: Tensor) -> Tensor:
    return (x[:, 0] > 0).long() + (x[:, 1] > 0).long()  # [T], of E


PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "linear": lambda x, u, w, v: x @ (u[0] @ w @ v[0]).T,
    "from the left": lambda x, u, w, v: (u[0] @ w @ v[0]) @ x.T,
    "stacked": lambda x, u, w, v: torch.einsum(
        "eac,tc->tea", torch.stack([u[e] @ w @ v[e] for e in range(E)]), x
    ),
    "stacked, from the left": lambda x, u, w, v: torch.einsum("eac,tc->eat", u @ w @ v, x),
    "stacked columns": lambda x, u, w, v: x @ (u @ w @ v).flatten(0, 1).T,
    "batched": lambda x, u, w, v: torch.matmul(u @ w @ v, x.T),
    "chosen": lambda x, u, w, v: torch.bmm((u @ w @ v)[numbers(x)], x[..., None]),
    "cut": lambda x, u, w, v: x[:, :2] @ (u[1] @ w @ v[1])[1:3, :2].T,
    "in another order": lambda x, u, w, v: x[:, [2, 0, 1]] @ (u[0] @ w @ v[0])[:, [5, 3, 1]].T,
    "cut in the batch": lambda x, u, w, v: torch.matmul((u @ w @ v)[1:], x.T),
    "turned": lambda x, u, w, v: torch.matmul(x, (u @ w @ v).mT),
    "turned in the batch": lambda x, u, w, v: torch.matmul((u @ w @ v)[None].transpose(0, 1), x.T),
    "side by side": lambda x, u, w, v: torch.matmul(torch.einsum("ab,ebc->eac", w, v), x.T),
    "one under the other": lambda x, u, w, v: torch.einsum(
        "eac,tc->tea", torch.einsum("eab,bc->eac", u @ w, v[0]), x
    ),
    "repeated": lambda x, u, w, v: torch.matmul((w @ v[0]).expand(2, B, C), x.T),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_factors_make_the_same_result(name: str) -> None:
    """Rows that meet one factor after the other come out as from the product, which is gone."""
    x = torch.randn(T, C, generator=torch.Generator().manual_seed(1))
    graph = capture(Applied(PRODUCTS[name]).eval(), (x,)).graph
    apart = unfolded(graph)
    assert apart is not None
    verify(apart)
    (was,) = interpret(graph, x.numpy(), precision="f64")
    (now,) = interpret(apart, x.numpy(), precision="f64")
    np.testing.assert_allclose(now, was, rtol=1e-12, atol=1e-12)
    folded = fold_constants(apart)
    largest = max(node.type.size for node in folded.nodes if node.op == "constant")
    assert largest <= max(E * A * B, B * B, E * B * C)
    products = [node for node in folded.nodes if node.op in ("matmul", "linear")]
    assert len(products) >= 2


def test_a_graph_without_products_of_matrices_stays() -> None:
    """Where each matrix stands alone there is nothing to take apart."""
    x = torch.randn(T, C)
    graph = capture(Applied(lambda x, u, w, v: x @ v[0].T @ w).eval(), (x,)).graph
    assert unfolded(graph) is None
