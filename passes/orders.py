"""Orders of channels: the second operand of `shuffle`, as arrays. -1 stands for a zero."""

from __future__ import annotations

import numpy as np

from ..compiler.ir import Node, make, remake
from .base import ELEMENTWISE, PRODUCTS, Walk, is_constant

Order = np.ndarray  # i32[n]


def order_of(node: Node, walk: Walk) -> Order | None:
    """The order of a `shuffle` node, if it is fixed; None for any other node."""
    if node.op != "shuffle" or not is_constant(node.operands[1]):
        return None
    return walk.value(node.operands[1])


def is_identity(order: Order, width: int) -> bool:
    return np.array_equal(order, np.arange(width))


def is_permutation(order: Order, width: int) -> bool:
    return np.array_equal(np.sort(order), np.arange(width))


def is_injective(order: Order) -> bool:
    """Whether no channel is taken twice."""
    live = order[order >= 0]
    return np.unique(live).size == live.size


def compose(first: Order, then: Order) -> Order:
    """The order of ``shuffle(shuffle(x, first), then)``."""
    return np.where(then >= 0, first[np.maximum(then, 0)], -1).astype(np.int32)


def inverse(order: Order, width: int) -> Order:
    """Where each of ``width`` channels goes under ``order``; -1 for those that it drops."""
    places = np.full(width, -1, np.int32)
    live = order >= 0
    places[order[live]] = np.flatnonzero(live)
    return places


def reordered(array: np.ndarray, order: Order, axis: int = -1, fill: float = 0) -> np.ndarray:
    """``array`` with an axis in another order, ``fill`` where the order is -1."""
    moved = np.take(array, np.maximum(order, 0), axis)
    shape = [1] * array.ndim
    shape[axis] = order.size
    return np.where((order >= 0).reshape(shape), moved, array.dtype.type(fill))


def shuffled(x: Node, order: Order, walk: Walk, like: Node) -> Node:
    """``x`` in ``order``, as few shuffles as possible, with the name and source of ``like``."""
    before = order_of(x, walk)
    if before is not None:
        x, order = x.operands[0], compose(before, order)
    if is_identity(order, x.type.shape[-1]):
        return x
    is_shuffle = like.op == "shuffle"
    name = like.operands[1].name if is_shuffle else f"{like.name}.order"
    operand = walk.constant(order.astype(np.int32), name)
    name = like.name if is_shuffle else f"{like.name}.shuffle"
    return make("shuffle", x, operand, name=name, source=like.source)


def compose_shuffles(node: Node, walk: Walk) -> Node | None:
    """shuffle . shuffle -> shuffle; a shuffle that changes nothing goes."""
    order = order_of(node, walk)
    if order is None:
        return None
    x = node.operands[0]
    if order_of(x, walk) is None and not is_identity(order, x.type.shape[-1]):
        return None
    return shuffled(x, order, walk, node)


def varying(node: Node) -> tuple[Node, ...]:
    """The operands of ``node`` that are no constants."""
    return tuple(operand for operand in node.operands if operand.op != "constant")


def from_product(node: Node, walk: Walk) -> bool:
    """Whether ``node`` comes from a product, elementwise: its channels can be made in any order."""
    while walk.read_once(node) and (node.op in ELEMENTWISE or node.op in ("shuffle", "reshape")):
        operands = varying(node)
        if len(operands) != 1:
            return False
        node = operands[0]
    return node.op in PRODUCTS and walk.read_once(node)


def with_operands(node: Node, operands: tuple[Node, ...]) -> Node:
    """``node`` on operands of another width: the last axis of its shape attribute follows."""
    if "shape" in node.attributes:
        shape = (*node.type.shape[:-1], operands[0].type.shape[-1])
        return remake(node, *operands, shape=shape)
    return remake(node, *operands)
