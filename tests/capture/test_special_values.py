"""NaN and infinity in a model's inputs become what PyTorch eager makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.ir.interpret import interpret

from .agreement import Function, agree, check, data

INF, NAN = float("inf"), float("nan")
ROWS = torch.tensor(
    [
        [1.0, 2.0, 3.0, 4.0],
        [-INF, -INF, -INF, -INF],
        [-INF, 1.0, -INF, 2.0],
        [INF, 1.0, 2.0, -1.0],
        [INF, INF, 1.0, -INF],
        [NAN, 1.0, 2.0, 3.0],
        [1.0, 2.0, 3.0, NAN],
        [NAN, INF, -INF, 0.0],
        [NAN, NAN, NAN, NAN],
        [-0.0, 0.0, -1.0, 1.0],
    ]
)

CASES: dict[str, Callable[[Tensor], Any]] = {
    "softmax": lambda x: x.softmax(-1),
    "softmax_of_columns": lambda x: x.softmax(0),
    "softmin": lambda x: F.softmin(x, -1),
    "safe_softmax": lambda x: torch._safe_softmax(x, -1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "logcumsumexp": lambda x: x.logcumsumexp(-1),
    "max": lambda x: tuple(x.max(-1)),
    "min": lambda x: tuple(x.min(-1)),
    "amax": lambda x: (x.amax(-1), x.amin(-1)),
    "argmax": lambda x: (x.argmax(-1), x.argmin(-1)),
    "sort_upwards": lambda x: tuple(x.sort(stable=True)),
    "smallest": lambda x: x.topk(2, largest=False).values,
    "clamp": lambda x: (x.clamp(-1, 1), x.clamp(min=0), x.clamp(max=0)),
    "relu": lambda x: (x.relu(), F.relu6(x), F.hardtanh(x), F.leaky_relu(x)),
    "silu": lambda x: (F.silu(x), F.gelu(x, approximate="tanh"), F.mish(x), F.elu(x)),
    "softplus": lambda x: (F.softplus(x), F.logsigmoid(x), F.hardswish(x)),
    "exp": lambda x: (x.exp(), x.log(), x.tanh(), x.sigmoid(), x.erf(), x.sqrt(), x.rsqrt()),
    "trigonometric": lambda x: (x.sin(), x.cos()),
    "sign": lambda x: (x.sign(), x.abs(), x.floor(), x.round(), x.trunc()),
    "layer_norm": lambda x: (F.layer_norm(x, (4,)), F.rms_norm(x, (4,))),
    "sums": lambda x: (x.sum(-1), x.mean(-1), x.cumsum(-1), x @ torch.ones(4, 2)),
    "comparisons": lambda x: (x > 0, x <= 0, x == x, x != x, torch.maximum(x, x.flip(-1))),
    "masked": lambda x: x.masked_fill(x > 0, 0.0),
}


@pytest.mark.parametrize("name", CASES)
def test_special_numbers(name: str) -> None:
    """A row of NaN, infinities or both gives NaN, infinities and numbers where eager does."""
    model = Function(CASES[name])
    got = interpret(capture(model, (data(*ROWS.shape),)).graph, ROWS.numpy())
    want = model(ROWS)
    for mine, theirs in zip(got, want if isinstance(want, tuple) else (want,), strict=True):
        check(mine, theirs.numpy(), 1e-6, name)


def test_where_order_differs_from_pytorch() -> None:
    """The largest and a sort downwards have NaN behind all numbers; PyTorch has it in front."""
    x = torch.tensor([[1.0, NAN, 3.0, 2.0]])
    model = Function(lambda x: (x.topk(3).indices, x.sort(descending=True).indices))
    largest, order = interpret(capture(model, (data(1, 4),)).graph, x.numpy())
    assert largest.tolist() == [[2, 3, 0]]
    assert order.tolist() == [[2, 3, 0, 1]]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("kind", ["bool", "float", "constant"])
def test_queries_that_see_no_key(kind: str) -> None:
    """Attention gives 0 to a query whose every key is masked, as PyTorch does."""
    q, k, v = (data(2, 3, 5, 4, seed=i) for i in range(3))
    mask = torch.ones(5, 5).tril(-1).bool()
    if kind == "float":
        mask = torch.zeros(5, 5).masked_fill(~mask, -INF)
    given = () if kind == "constant" else (mask,)
    captured = agree(Function(lambda *x: attend(*(*x, mask)[:4])), q, k, v, *given)
    (y,) = interpret(captured.graph, *(x.numpy() for x in (q, k, v, *given)))
    assert (y[:, :, 0] == 0).all()
    assert (y[:, :, 1] != 0).all()


def test_masks_that_leave_each_query_a_key_cost_nothing() -> None:
    """A constant mask in which each query sees some key adds no op to attention."""
    q, k, v = (data(2, 3, 5, 4, seed=i) for i in range(3))
    for mask in (torch.ones(5, 5).tril().bool(), torch.zeros(5, 5).fill_diagonal_(-INF)):
        graph = agree(Function(lambda *x, mask=mask: attend(*x, mask)), q, k, v).graph
        assert not {"max", "not_equal"} & {node.op for node in graph.nodes}


class Padded(nn.Module):
    """Self-attention with padding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        return y


def test_a_sentence_of_padding_alone() -> None:
    """A batch that holds a sentence of padding alone is computed as PyTorch does."""
    padding = torch.tensor([[False, False, True], [True, True, True]])
    agree(Padded(), data(2, 3, 8), padding)
