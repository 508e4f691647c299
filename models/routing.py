"""Which experts a token goes to, and with what weight."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

GateRule = Literal["raw", "softmax_topk", "topk_softmax", "renormalised", "sigmoid"]
GATE_RULES: tuple[str, ...] = get_args(GateRule)


def choose(logits: Tensor, top_k: int, rule: GateRule) -> tuple[Tensor, Tensor]:
    """Gates and expert numbers, each [T, k], of the k largest of the logits [T, E].

    ``raw`` takes the logits themselves (Algorithm 2 as printed); ``softmax_topk`` the softmax over
    all experts; ``topk_softmax`` the softmax over the chosen; ``renormalised`` the softmax over
    all, divided by the sum of the chosen; ``sigmoid`` the sigmoid of each chosen logit.
    """
    if rule in ("softmax_topk", "renormalised"):
        gates, experts = logits.softmax(dim=-1).topk(top_k, dim=-1)
        if rule == "renormalised":
            gates = gates / gates.sum(dim=-1, keepdim=True)
        return gates, experts
    gates, experts = logits.topk(top_k, dim=-1)
    if rule == "topk_softmax":
        gates = gates.softmax(dim=-1)
    elif rule == "sigmoid":
        gates = gates.sigmoid()
    return gates, experts
