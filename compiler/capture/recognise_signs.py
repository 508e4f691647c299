"""What is never below zero, whatever the inputs are."""

from __future__ import annotations

from ..ir.graph import Node, topological_order
from .recognise_probe import Probe

ALWAYS = frozenset({"abs", "exp", "greater", "greater_equal", "less", "less_equal", "equal"}) | {
    "not_equal", "logical_and", "logical_not", "logical_or", "relu", "rsqrt", "sigmoid", "softmax",
    "sqrt", "argmax",
}  # fmt: skip
IF_ALL_ARE = frozenset({"add", "mul", "div", "matmul", "concat", "minimum", "linear"})
IF_FIRST_IS = frozenset({"broadcast", "cast", "gather", "max", "mean", "min", "pow", "reshape"}) | {
    "result", "slice", "sum", "take", "top_k", "transpose",
}  # fmt: skip


def is_never_negative(probe: Probe, node: Node) -> bool:
    """Whether ``node`` has no element below zero, as far as the ops that make it tell."""
    known: dict[Node, bool] = {}
    for part in topological_order((node,)):
        signs = [known[operand] for operand in part.operands]
        if part.op == "constant":
            known[part] = bool((probe.evaluate(part, {}) >= 0).all())
        elif part.op in IF_ALL_ARE:
            known[part] = all(signs) and part.attributes.get("activation", "none") == "none"
        elif part.op in IF_FIRST_IS:
            known[part] = signs[0]
        elif part.op == "where":
            known[part] = all(signs[1:])
        elif part.op == "maximum":
            known[part] = any(signs)
        elif part.op == "clip":
            low = part.attributes.get("low")
            known[part] = signs[0] or (isinstance(low, int | float) and low >= 0)
        else:
            known[part] = part.op in ALWAYS
    return known[node]
