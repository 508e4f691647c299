"""Every form that a known operator refuses is refused by name, with what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from butterflyc.compiler.capture.export import capture
from butterflyc.compiler.capture.refusals import advice_for
from butterflyc.compiler.errors import Unsupported

from .agreement import Function, data

INDEX, MANY = torch.arange(5), torch.arange(0, 4995, 3).sub(1).clamp(0)

# Each on x: [2, 6, 8]: the call, what is named, what is advised.
CASES: list[tuple[Callable[[Tensor], Any], str, str]] = [
    (lambda x: x.long() ** x.long(), "an integer power in i64", "raise floats"),
    (lambda x: x.long() ** 5, "power 5 of i64", "products"),
    (lambda x: x.long() | 3, "bits of i64", "masks as bool"),
    (lambda x: x.long() & 5, "does not count up to a power of two", "products"),
    (lambda x: x.long() << x.long(), "a shift by computed bits", "power of two"),
    (lambda x: x[x[..., 0] > 0], "a result whose size the data chooses", "zeros"),
    (lambda x: x.repeat_interleave(x[0, :, 0].long(), 1, output_size=9), "counts", "constants"),
    (lambda x: F.conv_transpose1d(x, x[0, :, None]), "computed weights", "constant"),
    (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5), "dropout", "dropout_p=0.0"),
    (lambda x: x.repeat(1, 20, 1).prod(1), "a product of 120", "logarithms"),
    (
        lambda x: x.new_zeros(9000).index_add(0, x[0, 0].long().repeat(300), x[0, 0].repeat(300)),
        "2400 rows written into 9000",
        "fewer",
    ),
    (lambda x: x.scatter(2, x.topk(2).indices, 2.0, reduce="multiply"), "multiply", "scatter_add"),
    (lambda x: _put(x, x[..., 0] > 0, x[:, 0] * 2), "as many rows as a mask", "torch.where"),
    (lambda x: F.dropout(x, 0.5, training=True), "dropout while training", "model.eval()"),
    (lambda x: x.view(torch.int32), "bits of f32 read as i32", ".to(dtype)"),
    (lambda x: F.pad(x, (-1, 2), mode="replicate"), "negative replicate", "slice"),
    (lambda x: x.nonzero(), "a result whose size the data chooses", "zeros"),
    (lambda x: x.half().float(), "aten.to.dtype in f16", "float32"),
    (lambda x: x.masked_select(x > 0), "whose size the data chooses", "zeros"),
    (lambda x: torch.bincount((x > 0).long().flatten()), "bincount", "one_hot"),
    (lambda x: x.scatter_reduce(1, x.topk(2).indices, x, "prod"), "with 'prod'", "amax"),
    (lambda x: _at_once(x.new_zeros(2, 9000), x), "4800 elements a row", "fewer"),
    (lambda x: _at_once(x.new_zeros(9000), x, "amax"), "4800 rows written", "fewer"),
    (lambda x: torch.rand_like(x) + x, "rand", "no random numbers"),
    (lambda x: torch.lgamma(x), "lgamma", "elementwise"),
    (lambda x: torch.matrix_exp(x[..., :6]), "other than 2x2", "constants"),
    (lambda x: torch.searchsorted(x, x, sorter=x.argsort(-1)), "sorter", "sort"),
    (lambda x: (x > 0).cummax(-1), "cummax of bool", "integer"),
    (lambda x: F.max_pool1d(x, 2, return_indices=True), "its result 1", "plain model"),
    (lambda x: x.to(torch.uint16).int(), "a tensor of torch.uint16", "integers"),
    (lambda x: (x, torch.arange(3).to(torch.uint16)), "a constant of torch.uint16", "integers"),
    (lambda x: F.embedding_bag(INDEX.repeat(999), x[0], MANY), "several sizes", "embedding("),
    (lambda x: torch.fft.fft(x.repeat(1, 1, 300)).real, "transform of 2400", "2048"),
]  # fmt: skip


def _at_once(y: Tensor, x: Tensor, reduce: str | None = None) -> Tensor:
    """More elements than may be compared with every place."""
    flat = x.flatten().repeat(50)
    index = flat.long()
    if reduce is None:
        return y.scatter(-1, torch.stack((index, index + 1)), torch.stack((flat, flat)))
    return y.scatter_reduce(-1, index, flat, reduce)


def _put(x: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    return x.index_put((mask,), rows)


@pytest.mark.parametrize(("function", "what", "advice"), CASES)
def test_refused(function: Callable[[Tensor], Tensor], what: str, advice: str) -> None:
    """A form without a lowering: what it is, where it stands, what to do."""
    with pytest.raises(Unsupported) as caught:
        capture(Function(function), (data(2, 6, 8),))
    assert what in caught.value.what
    assert advice in str(caught.value.help)
    assert "test_aten_refusals.py:" in str(caught.value.where)


def test_programs_in_training_mode() -> None:
    """A program that was exported while training is refused where that matters."""
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5))
    program = torch.export.export(model, (data(2, 6, 8),))
    with pytest.raises(Unsupported) as caught:
        capture(program, (data(2, 6, 8),))
    assert "_native_batch_norm" in caught.value.what
    assert "writes to '0.running_mean'" in caught.value.what
    assert "call model.eval() before torch.export" in str(caught.value.help)


def test_one_hot_needs_its_number_of_classes() -> None:
    """Without it torch itself counts the classes in the data."""
    with pytest.raises(Unsupported):
        capture(Function(lambda x: F.one_hot(x.argmax(-1))), (data(2, 6),))


@pytest.mark.parametrize(
    ("target", "advice"),
    [
        ("aten.sofmax.int", "softmax"),
        ("aten.lstm.input", "steps"),
        ("mine.special.default", "custom kernels"),
        ("cond", "torch.where"),
    ],
)
def test_advice(target: str, advice: str) -> None:
    """Unknown operators get advice too: the nearest known names, or a way around."""
    assert advice in advice_for(target)
