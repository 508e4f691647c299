"""The training loss: each term against its formula, and what has a gradient."""

from __future__ import annotations

import torch

from butterflyc.models.losses import (
    eq8_balance,
    expert_shares,
    spatial_smoothness,
    switch_balance,
    training_loss,
)


def test_shares_count_chosen_pairs() -> None:
    """Two tokens that choose experts {0, 1} and {0, 2} give the shares 1/2, 1/4, 1/4, 0."""
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 1.0, 2.0, 0.0]])
    assert expert_shares(logits, 2).tolist() == [0.5, 0.25, 0.25, 0.0]


def test_balance_is_one_when_even_and_grows() -> None:
    """Both balance terms are 1 under even load; all tokens on one expert give eq. 8 the value E."""
    even = torch.eye(4) * 1e-3
    torch.testing.assert_close(switch_balance(even, 1).item(), 1.0, rtol=1e-3, atol=0)
    assert eq8_balance(even, 1).item() == 1.0
    crowded = torch.tensor([[5.0, 0.0, 0.0, 0.0]]).expand(6, 4)
    assert eq8_balance(crowded, 1).item() == 4.0
    assert switch_balance(crowded, 1).item() > 3.5


def test_only_the_switch_form_has_a_gradient() -> None:
    """Eq. 8 counts tokens and cannot be trained; the Switch form lowers the crowded logit."""
    logits = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 1.0]], requires_grad=True)
    assert not eq8_balance(logits, 1).requires_grad
    switch_balance(logits, 1).backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0] > 0).all()


def test_smoothness_sees_edges_and_not_the_class_token() -> None:
    """On a 2 x 2 grid the four edges count, diagonals and the class token do not."""
    logits = torch.zeros(1, 5, 1)
    logits[0, 0] = 100.0
    logits[0, 1:, 0] = torch.tensor([0.0, 1.0, 3.0, 7.0])
    assert spatial_smoothness(logits, 2).item() == (1 + 16 + 9 + 36) / 4
    assert spatial_smoothness(torch.zeros(1, 2, 1), 1).item() == 0.0


def test_total_is_the_weighted_sum() -> None:
    """Total = cross entropy + 0.05 balance + 0.005 smoothness, means over the MoE layers."""
    torch.manual_seed(0)
    outputs, labels = torch.randn(3, 10), torch.tensor([1, 2, 3])
    gates = [torch.randn(3, 5, 4), torch.randn(3, 5, 4)]
    terms = training_loss(outputs, labels, gates, top_k=2, grid=2)
    balance = sum(switch_balance(g, 2) for g in gates) / 2
    smoothness = sum(spatial_smoothness(g, 2) for g in gates) / 2
    wanted = torch.nn.functional.cross_entropy(outputs, labels) + 0.05 * balance
    torch.testing.assert_close(terms.total, wanted + 0.005 * smoothness)
    torch.testing.assert_close(terms.eq8, sum(eq8_balance(g, 2) for g in gates) / 2)


def test_dense_model_has_cross_entropy_alone() -> None:
    """Without MoE layers the total is the cross entropy."""
    outputs, labels = torch.randn(3, 10), torch.tensor([1, 2, 3])
    terms = training_loss(outputs, labels, [], top_k=1, grid=2)
    assert torch.equal(terms.total, terms.cross_entropy)


def test_tokens_without_a_grid_are_not_smoothed() -> None:
    """Where tokens have no neighbours the total is cross entropy and balance."""
    outputs, labels = torch.randn(6, 10), torch.tensor([1, 2, 3, 4, 5, 6])
    gates = [torch.randn(2, 3, 4)]
    terms = training_loss(outputs, labels, gates, top_k=2, grid=None)
    assert terms.smoothness == 0
    torch.testing.assert_close(terms.total, terms.cross_entropy + 0.05 * terms.balance)
