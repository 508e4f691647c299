"""Products, convolutions, attention, normalisations and einsum mean what they mean in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from .agreement import Function, agree, agree_in_double, data

VECTOR = data(8)
HEADS = data(2, 3, 5, 4)


def skew(x: Tensor) -> Tensor:
    """[0, -x; x, 0] of each element."""
    zero = torch.zeros_like(x)
    return torch.stack([torch.stack([zero, -x], -1), torch.stack([x, zero], -1)], -2)


# Each on x: [2, 6, 8].
CASES: dict[str, Callable[[Tensor], Any]] = {
    "linear_by_row": lambda x: F.linear(x, x[0]),
    "linear_vector": lambda x: F.linear(x, VECTOR),
    "matmul": lambda x: x @ x.mT,
    "matmul_broadcast": lambda x: x[:, None] @ x.mT,
    "matmul_constant": lambda x: x @ torch.ones(8, 3),
    "matmul_left_constant": lambda x: torch.ones(4, 6) @ x,
    "matmul_vectors": lambda x: (x @ x[0, 0], x[0, 0] @ x.mT, x[0, 0] @ x[0, 1]),
    "mm": lambda x: x[0].mm(x[1].t()),
    "bmm": lambda x: x.bmm(x.mT),
    "mv": lambda x: x[0].mv(x[0, 0]),
    "addmm": lambda x: torch.addmm(x[0, :, :6], x[0], x[1].t(), beta=0.5, alpha=2),
    "addmm_constant": lambda x: torch.addmm(torch.ones(3), x[0], torch.ones(8, 3)),
    "baddbmm": lambda x: torch.baddbmm(x[:, :, :6], x, x.mT),
    "outer": lambda x: torch.outer(x[0, 0], x[0, 1]),
    "attention": lambda x: F.scaled_dot_product_attention(HEADS * x[0, 0, 0], HEADS, HEADS),
    "attention_causal": lambda x: F.scaled_dot_product_attention(
        x[:, None], x[:, None], x[:, None], is_causal=True
    ),
    "attention_rank_3": lambda x: F.scaled_dot_product_attention(x, x[:, :4], x[:, :4], scale=0.3),
    "attention_mask": lambda x: F.scaled_dot_product_attention(
        x[:, None], x[:, None], x[:, None], attn_mask=torch.ones(6, 6).tril().bool()
    ),
    "attention_bias": lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=x @ x.mT),
    "attention_groups": lambda x: F.scaled_dot_product_attention(
        x.view(2, 4, 6, 2), x[:, :4].view(2, 2, 8, 2), x[:, 2:].view(2, 2, 8, 2), enable_gqa=True
    ),
    "matrix_exp": lambda x: torch.matrix_exp(x.unflatten(-1, (2, 2, 2))),
    "matrix_exp_small": lambda x: torch.matrix_exp(0.01 * x.view(24, 2, 2)),
    "matrix_exp_skew": lambda x: torch.linalg.matrix_exp(9 * skew(x[0])),
    "matrix_exp_symmetric": lambda x: torch.matrix_exp(skew(x[0]).abs()),
    "matrix_exp_nilpotent": lambda x: torch.matrix_exp(skew(x[0]).triu()),
    "softmax": lambda x: x.softmax(1),
    "softmax_of_int": lambda x: (x > 0).softmax(-1, dtype=torch.float32),
    "log_softmax": lambda x: x.log_softmax(-1),
    "softmin": lambda x: F.softmin(x, dim=1),
    "layer_norm_plain": lambda x: F.layer_norm(x, (8,)),
    "layer_norm_axes": lambda x: F.layer_norm(x, (6, 8), torch.ones(6, 8) * 2),
    "rms_norm": lambda x: F.rms_norm(x, (8,), torch.ones(8) * 2, eps=1e-6),
    "rms_norm_plain": lambda x: F.rms_norm(x, (8,)),
    "group_norm": lambda x: F.group_norm(x, 3, torch.arange(6.0), torch.ones(6)),
    "instance_norm": lambda x: F.instance_norm(x),
}  # fmt: skip

# Modules on an image [2, 4, 9, 8].
IMAGES: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 6, 3),
    "conv_patch": lambda: nn.Conv2d(4, 6, (3, 4), stride=(3, 4), bias=False),
    "conv_padded": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=(1, 2)),
    "conv_same": lambda: nn.Conv2d(4, 6, (3, 2), padding="same"),
    "conv_valid": lambda: nn.Conv2d(4, 6, (3, 2), padding="valid"),
    "conv_dilated": lambda: nn.Conv2d(4, 6, 2, dilation=(2, 3)),
    "conv_groups": lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1),
    "conv_depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1, stride=2),
    "conv_reflect": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "batch_norm": lambda: _with_statistics(nn.BatchNorm2d(4)),
    "batch_norm_plain": lambda: _with_statistics(nn.BatchNorm2d(4, affine=False)),
    "batch_norm_of_batch": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "group_norm": lambda: nn.GroupNorm(2, 4),
    "instance_norm": lambda: nn.InstanceNorm2d(4, affine=True),
    "max_pool": lambda: nn.MaxPool2d(3, 2, padding=1),
    "average_pool": lambda: nn.AvgPool2d((3, 2)),
    "average_pool_padded": lambda: nn.AvgPool2d(3, 1, padding=1),
    "adaptive_pool": lambda: nn.AdaptiveAvgPool2d((3, 2)),
    "global_pool": lambda: nn.AdaptiveAvgPool2d(1),
    "unfold": lambda: nn.Unfold((3, 2), dilation=(1, 2), padding=1, stride=2),
    "upsample": lambda: nn.Upsample(scale_factor=2),
    "flatten": lambda: nn.Sequential(nn.Flatten(), nn.Linear(288, 5)),
}


def _with_statistics(norm: nn.BatchNorm2d) -> nn.Module:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(data(4))
    norm.running_var.copy_(data(4).abs() + 0.5)
    return norm


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    """A product, a normalisation or attention on one tensor of three axes."""
    agree(Function(CASES[name]), data(2, 6, 8))


@pytest.mark.parametrize("name", IMAGES)
def test_image(name: str) -> None:
    """A module on a batch of images."""
    torch.manual_seed(0)
    agree(IMAGES[name](), data(2, 4, 9, 8))


def test_one_axis_convolution() -> None:
    """A convolution over one axis, with and without a batch."""
    torch.manual_seed(0)
    agree(nn.Conv1d(4, 6, 3, stride=2, padding=1), data(2, 4, 9))
    agree(nn.Conv1d(4, 4, 3, groups=4, dilation=2), data(4, 9))


@pytest.mark.parametrize("name", ["matmul", "attention_causal", "layer_norm_plain", "softmax"])
def test_in_double(name: str) -> None:
    """Computed in double precision, graph and PyTorch agree to round-off."""
    agree_in_double(Function(CASES[name]), data(2, 6, 8))


def test_constant_matrix_becomes_linear() -> None:
    """A product with a constant matrix is `linear` with the parameter itself, by its name."""
    graph = agree(Function(lambda x, w: x @ w.t(), w=data(5, 8)), data(2, 6, 8)).graph
    (node,) = (node for node in graph.nodes if node.op == "linear")
    assert node.operands[1].name == "w"
    assert node.operands[1].type.shape == (5, 8)


EQUATIONS = [
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("ij,jk", (2, 3), (3, 4)),
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    ("bhid,bhjd->bhij", (2, 3, 4, 5), (2, 3, 6, 5)),
    ("...ij,...jk->...ik", (2, 3, 4), (4, 5)),
    ("...d,nd->...n", (2, 3, 4), (5, 4)),
    ("tk,tkd->td", (3, 2), (3, 2, 4)),
    ("td,edf->tef", (3, 4), (2, 4, 5)),
    ("tef,te->tf", (3, 2, 4), (3, 2)),
    ("i,j->ij", (3,), (4,)),
    ("i,i->", (3,), (3,)),
    ("ij,ij->i", (3, 4), (3, 4)),
    ("ij,kl->ik", (3, 4), (2, 5)),
    ("ab,bc,cd->da", (2, 3), (3, 4), (4, 5)),
    ("bnhd,bmhd->bhnm", (1, 3, 2, 4), (2, 5, 2, 4)),
    ("ij,ij->i", (3, 1), (3, 4)),
    ("...j,...ji->...i", (5, 4), (3, 1, 4, 6)),
    ("ijk->ki", (2, 3, 4)),
    ("ij->", (2, 3)),
]


@pytest.mark.parametrize("case", EQUATIONS, ids=lambda case: case[0])
def test_einsum(case: tuple[Any, ...]) -> None:
    """An Einstein sum of one to three operands."""
    equation, *shapes = case
    agree(
        Function(lambda *x: torch.einsum(equation, *x)),
        *(data(*shape, seed=i) for i, shape in enumerate(shapes)),
    )


def test_an_axis_of_size_one_is_not_repeated() -> None:
    """Where one operand has size 1 and the other more, no row of the one is there twice."""
    equation = "...j,...ji->...i"
    captured = agree(
        Function(lambda x, w: torch.einsum(equation, x, w)), data(5, 4), data(3, 1, 4, 6)
    )
    assert max(node.type.size for node in captured.graph.nodes) == 5 * 3 * 6


@given(st.data())
@settings(max_examples=30)
def test_any_einsum(draw: st.DataObject) -> None:
    """Any two operands whose labels are distinct, and any choice of labels in the result."""
    labels = st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True)
    left, right = draw.draw(labels), draw.draw(labels)
    result = draw.draw(st.permutations(sorted({*left, *right})))
    result = result[: draw.draw(st.integers(0, len(result)))]
    equation = f"{''.join(left)},{''.join(right)}->{''.join(result)}"
    size = {"a": 2, "b": 3, "c": 1, "d": 4}
    operands = (data(*(size[label] for label in side)) for side in (left, right))
    agree(Function(lambda x, y: torch.einsum(equation, x, y)), *operands)


@pytest.mark.parametrize("dims", [0, 1, 2, ([0, 2], [1, 2]), ([-1], [0])])
def test_tensordot(dims: Any) -> None:
    """Axes of two tensors, multiplied and summed over."""
    shapes = {0: ((2, 3), (4,)), 1: ((2, 3, 4), (4, 5)), 2: ((2, 3, 4), (3, 4, 5))}
    first, second = shapes.get(dims if isinstance(dims, int) else 3, ((2, 3, 4), (4, 2, 4)))
    agree(
        Function(lambda a, b: torch.tensordot(a, b, dims=dims)), data(*first), data(*second, seed=1)
    )
