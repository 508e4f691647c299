"""Rules for arithmetic: what changes no bit goes; softmax and layer norm are recognised."""

from __future__ import annotations

import numpy as np

from ..compiler.ir import Node, make
from ..compiler.ir.types import FLOATS, INTEGERS
from .base import Walk, is_constant

Array = np.ndarray


def subtract_to_add(node: Node, walk: Walk) -> Node | None:
    """x - constant -> x + (-constant), the same in IEEE 754 and in wrapping integers."""
    if node.op != "sub" or not is_constant(node.operands[1]):
        return None
    if node.type.dtype not in FLOATS | INTEGERS:
        return None
    x, fixed = node.operands
    negated = walk.constant(-walk.value(fixed), fixed.name, fixed.type)
    return make("add", x, negated, name=node.name, source=node.source)


def divide_to_multiply(node: Node, walk: Walk) -> Node | None:
    """x / constant -> x * (1 / constant) where that rounds nothing: powers of two."""
    if node.op != "div" or node.type.dtype not in FLOATS or not is_constant(node.operands[1]):
        return None
    x, fixed = node.operands
    value = walk.value(fixed)
    with np.errstate(all="ignore"):
        reciprocal = (1 / value).astype(value.dtype)
        mantissa, _ = np.frexp(value)
    tiny = np.finfo(value.dtype).tiny
    normal = (np.abs(reciprocal) >= tiny) & (np.abs(value) >= tiny) & np.isfinite(reciprocal)
    if not (normal & (np.abs(mantissa) == 0.5)).all():
        return None
    factor = walk.constant(reciprocal, fixed.name, fixed.type)
    return make("mul", x, factor, name=node.name, source=node.source)


def drop_neutral(node: Node, walk: Walk) -> Node | None:
    """x * 1, x / 1 -> x; x + 0 -> x where no -0.0 becomes 0.0: on integers, or adding -0.0."""
    if node.op not in ("mul", "div", "add"):
        return None
    sides = (node.operands,) if node.op == "div" else (node.operands, node.operands[::-1])
    for x, fixed in sides:
        if x.types != node.types or not is_constant(fixed):
            continue
        value = walk.value(fixed)
        is_zero = node.op == "add" and bool((value == 0).all())
        if node.type.dtype in FLOATS:
            is_zero = is_zero and bool(np.signbit(value).all())
        if is_zero or (node.op != "add" and bool((value == 1).all())):
            return x
    return None


def drop_double_negation(node: Node, walk: Walk) -> Node | None:
    """-(-x) -> x."""
    double = node.op == "neg" and node.operands[0].op == "neg"
    return node.operands[0].operands[0] if double else None


def reduces(node: Node, op: str, x: Node) -> int | None:
    """The one axis over which ``node`` is ``op`` of ``x``, the axis kept; else None."""
    if node.op != op or node.operands[0] is not x or not node["keep"] or len(node["axes"]) != 1:
        return None
    axis: int = node["axes"][0] % x.type.rank
    return axis


def to_softmax(node: Node, walk: Walk) -> Node | None:
    """exp(x - max x) / sum exp(x - max x) -> softmax."""
    if node.op != "div" or node.operands[0].op != "exp":
        return None
    powers, total = node.operands
    centred = powers.operands[0]
    axis = reduces(total, "sum", powers)
    if axis is None or centred.op != "sub":
        return None
    x, largest = centred.operands
    if reduces(largest, "max", x) != axis:
        return None
    return make("softmax", x, axis=axis, name=node.name, source=node.source)


def normalised(node: Node) -> tuple[Node, Node] | None:
    """(x, variance + eps) of x / sqrt(variance + eps), in either way of writing it."""
    if node.op == "div" and node.operands[1].op == "sqrt":
        return node.operands[0], node.operands[1].operands[0]
    if node.op == "mul":
        for x, factor in (node.operands, node.operands[::-1]):
            if factor.op == "rsqrt":
                return x, factor.operands[0]
    return None


def is_square(node: Node, x: Node, walk: Walk) -> bool:
    """Whether ``node`` is x * x or x ** 2."""
    if node.op == "mul":
        return node.operands == (x, x)
    if node.op != "pow" or node.operands[0] is not x or not is_constant(node.operands[1]):
        return False
    return bool((walk.value(node.operands[1]) == 2).all())


def to_layer_norm(node: Node, walk: Walk) -> Node | None:
    """(x - mean x) / sqrt(mean of its square + eps), over the last axis -> layer_norm."""
    found = normalised(node)
    if found is None or found[1].op != "add" or found[0].op != "sub":
        return None
    centred, shifted = found
    x, average = centred.operands
    variance, eps = shifted.operands
    if not is_constant(eps) or eps.type.size != 1 or variance.op != "mean":
        return None
    square = variance.operands[0]
    last = x.type.rank - 1
    if reduces(average, "mean", x) != last or reduces(variance, "mean", square) != last:
        return None
    if not is_square(square, centred, walk) or x.types != node.types:
        return None
    type = node.type.with_shape(node.type.shape[-1])
    ones = walk.constant(np.ones(type.shape, type.storage), f"{node.name}.weight", type)
    zeros = walk.constant(np.zeros(type.shape, type.storage), f"{node.name}.bias", type)
    size = float(walk.value(eps).reshape(()))
    return make("layer_norm", x, ones, zeros, eps=size, name=node.name, source=node.source)


def into_layer_norm(node: Node, walk: Walk) -> Node | None:
    """A factor, then a summand, a channel -> weight and bias of a layer_norm that has none."""
    if node.op not in ("mul", "add"):
        return None
    for norm, row in (node.operands, node.operands[::-1]):
        if norm.op != "layer_norm" or not walk.read_once(norm) or norm.types != node.types:
            continue
        x, weight, bias = norm.operands
        width = norm.type.shape[-1]
        if not is_constant(row) or row.type.size != width or row.type.shape[-1:] != (width,):
            continue
        if not (is_constant(weight) and is_constant(bias)) or walk.value(bias).any():
            continue
        if node.op == "mul" and not (walk.value(weight) == 1).all():
            continue
        type = row.type.with_shape(width)
        flat = walk.constant(walk.value(row).reshape(width), row.name, type)
        operands = (x, flat, bias) if node.op == "mul" else (x, weight, flat)
        return make("layer_norm", *operands, eps=norm["eps"], name=node.name, source=norm.source)
    return None


RULES = (
    subtract_to_add,
    divide_to_multiply,
    drop_neutral,
    drop_double_negation,
    to_softmax,
    to_layer_norm,
    into_layer_norm,
)
