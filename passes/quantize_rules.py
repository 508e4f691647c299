"""Which rule makes the integer form of each op, and what has none."""

from __future__ import annotations

from collections.abc import Callable

from ..compiler.ir import Node, remake
from ..compiler.ir.ops.elementwise import ACTIVATIONS
from .quantize_choices import alike, argmax, compared
from .quantize_codes import COMPARISONS, MOVES, Quantizer
from .quantize_elements import activation, add, div, mul, sub, total
from .quantize_moves import concat, moved, some, top_k
from .quantize_norms import attention, layer_norm, softmax
from .quantize_products import combine, linear, rotate, ternary_matmul

RULES: dict[str, Callable[[Quantizer, Node], Node]] = {
    **dict.fromkeys(MOVES, moved),
    **dict.fromkeys((name for name in ACTIVATIONS if name != "none"), activation),
    **dict.fromkeys(COMPARISONS, compared),
    **dict.fromkeys(("maximum", "minimum", "where"), alike),
    "add": add,
    "argmax": argmax,
    "attention": attention,
    "combine": combine,
    "concat": concat,
    "div": div,
    "layer_norm": layer_norm,
    "linear": linear,
    "mean": total,
    "mul": mul,
    "result": some,
    "rotate": rotate,
    "softmax": softmax,
    "sub": sub,
    "sum": total,
    "ternary_matmul": ternary_matmul,
    "top_k": top_k,
}
# Operands that must be constants, from the second on; and how many numbers a row may have.
CONSTANTS = frozenset({"layer_norm", "linear", "rotate", "ternary_matmul"})
LONGEST = {"attention": 1024, "layer_norm": 4096, "softmax": 1024, "sum": 1 << 16, "mean": 1 << 16}


def as_it_is(q: Quantizer, node: Node) -> Node:
    """An op on integers alone, which are what they were."""
    return remake(node, *(q.done.get(operand, operand) for operand in node.operands))


def why_not(node: Node) -> str:
    """What of ``node`` has no integer form; "" where it has one."""
    if node.op not in RULES:
        return node.op
    x, *others = node.operands
    fixed = others[:1] if node.op == "rotate" else others
    if node.op in CONSTANTS and not all(other.op == "constant" for other in fixed):
        return f"{node.op} by what is computed"
    if node.op == "attention" and node["scale"] < 0:
        return f"attention with the negative scale {node['scale']}"
    if node.op == "softmax" and node["axis"] % x.type.rank != x.type.rank - 1:
        return "softmax along another axis than the last"
    if node.op == "rotate" and node["lanes"] != 1:
        return "rotate in spread order"
    if node.op in LONGEST and _row_of(node) > LONGEST[node.op]:
        return f"{node.op} of {_row_of(node)} numbers, of {LONGEST[node.op]} at most"
    return ""


def _row_of(node: Node) -> int:
    """How many numbers each result of ``node`` is computed from."""
    x = node.operands[0].type
    if node.op == "attention":
        return node.operands[1].type.shape[2]
    if node.op in ("sum", "mean"):
        return x.size // max(1, node.type.size)
    return x.shape[-1] if x.rank else 1
