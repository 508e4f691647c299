"""Fold fixed orders of channels into the matrices in front of them and behind them.

    %1 = ternary_matmul(%x, %w, %scale)            %1 = ternary_matmul(%x, %w, %scale)
    %2 = gelu(%1)                                  %2 = gelu(%1)
    %3 = shuffle(%2, %order)                 ->    %3 = rotate(%2, %blocks, %e)
    %4 = rotate(%3, %blocks, %e)                   %4 = linear(%3, %w_down)
    %5 = shuffle(%4, %other)
    %6 = linear(%5, %w_down)                       rows of w, columns of w_down in another order

A shuffle goes up if it ends in the rows of products, else down, one op at a time, to the columns of
the product that reads it; past a weighted sum of experts there is one in place of k. Channels that
a shuffle drops become zero columns, those that it pads become zero rows; ternary stays ternary.
What nothing can take, such as the load order of a rotation, stays as one shuffle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..compiler.ir import Graph, Node, remake
from ..compiler.ir.ops import OPS
from ..compiler.ir.ops.elementwise import ACTIVATIONS
from ..compiler.ir.types import STORAGE
from .base import ELEMENTWISE, PRODUCTS, Walk, is_constant, rewrite, same_value
from .orders import (
    Order,
    compose_shuffles,
    inverse,
    is_injective,
    order_of,
    reordered,
    shuffled,
    with_operands,
)

MOVES = frozenset({"reshape", "transpose", "broadcast", "slice", "take", "concat"})
REDUCTIONS = frozenset({"sum", "mean", "max", "min"})


def channels(node: Node) -> int | None:
    """The last axis of ``node``; None where there is none, or one that broadcasts."""
    shape = node.type.shape
    return shape[-1] if shape and shape[-1] != 1 else None


def leaves_channels(node: Node) -> bool:
    """Whether ``node`` moves or sums whole rows and keeps the channels of its operand."""
    if node.op not in MOVES | REDUCTIONS or not node.type.shape:
        return False
    x = node.operands[0].type
    if not x.shape or x.shape[-1] != node.type.shape[-1]:
        return False
    last = x.rank - 1
    if node.op in REDUCTIONS:
        return all(axis % x.rank != last for axis in node["axes"])
    if node.op == "transpose":
        return bool(node["order"][-1] == last)
    if node.op in ("slice", "take", "concat"):
        return bool(node["axis"] % x.rank != last)
    return True


def scales_rows(node: Node, rows: list[Node]) -> bool:
    """Whether ``node`` gives 0 for 0 whatever its operands ``rows`` are: one factor a row."""
    divides = node.op == "div" and node.operands[0] not in rows
    return not rows or node.op == "mul" or divides


def fill_for(node: Node, width: int) -> int | None:
    """The padding of ``node``'s constants by which it gives 0 where its other operands are 0."""
    rows = [operand for operand in node.operands if channels(operand) != width]
    if not scales_rows(node, rows):
        return None
    for fill in (0, 1):
        values = [
            np.full(1, fill if is_constant(o) or o in rows else 0, STORAGE[o.type.dtype])
            for o in node.operands
        ]
        with np.errstate(all="ignore"):
            if (OPS[node.op].meaning(*values, **node.attributes) == 0).all():
                return fill
    return None


def fold_columns(node: Node, walk: Walk) -> Node | None:
    """product . shuffle: the columns of the matrix in another order."""
    order = order_of(node.operands[0], walk) if node.op in PRODUCTS else None
    if order is None or not is_constant(node.operands[1]) or not is_injective(order):
        return None
    x, weight = node.operands[0].operands[0], node.operands[1]
    width = x.type.shape[-1]
    columns = reordered(walk.value(weight), inverse(order, width))
    type = weight.type.with_shape(*columns.shape)
    return remake(node, x, walk.constant(columns, weight.name, type), *node.operands[2:])


def fold_rows(node: Node, order: Order, walk: Walk) -> Node | None:
    """The product ``node`` with its rows, and what goes with them, in another order."""
    _, weight, *others = node.operands
    if not all(is_constant(operand) for operand in node.operands[1:]):
        return None
    if (order < 0).any() and not (node.op == "ternary_matmul" or keeps_zero_after(node)):
        return None
    operands = [node.operands[0]]
    for operand, is_scale in ((weight, False), *((o, node.op == "ternary_matmul") for o in others)):
        array = walk.value(operand)
        if array.ndim:  # a scale may be one number
            array = reordered(array, order, 0, fill=1 if is_scale else 0)
        type = operand.type.with_shape(*array.shape)
        operands.append(walk.constant(array, operand.name, type))
    return remake(node, *operands)


def keeps_zero_after(linear: Node) -> bool:
    """Whether the activation of ``linear`` sends 0 to 0."""
    return bool(ACTIVATIONS[linear["activation"]](np.zeros(1))[0] == 0)


def moved_up(node: Node, order: Order, walk: Walk) -> Node | None:
    """What ``shuffle(node, order)`` computes, without a shuffle; None if that cannot be."""
    width = channels(node)
    if width is None:
        return None
    if is_constant(node):
        array = reordered(walk.value(node), order)
        return walk.constant(array, node.name, node.type.with_shape(*array.shape))
    if not walk.read_once(node):
        return None
    if node.op in PRODUCTS:
        return fold_rows(node, order, walk)
    if node.op in ELEMENTWISE:
        return _elementwise_up(node, order, walk)
    if leaves_channels(node) or node.op == "combine":
        parts = 1 if node.op in ("combine", "take") else len(node.operands)
        moved = [moved_up(operand, order, walk) for operand in node.operands[:parts]]
        if any(operand is None for operand in moved):
            return None
        operands = (*(o for o in moved if o is not None), *node.operands[parts:])
        return with_operands(node, operands)
    return None


def _elementwise_up(node: Node, order: Order, walk: Walk) -> Node | None:
    width = channels(node)
    assert width is not None, "an elementwise op on channels"
    fill = fill_for(node, width) if (order < 0).any() else 0
    if fill is None:
        return None
    operands = []
    for operand in node.operands:
        if channels(operand) != width:  # one value a row
            operands.append(operand)
        elif is_constant(operand):
            array = reordered(walk.value(operand), order, fill=fill)
            type = operand.type.with_shape(*array.shape)
            operands.append(walk.constant(array, operand.name, type))
        else:
            moved = moved_up(operand, order, walk)
            if moved is None:
                return None
            operands.append(moved)
    return remake(node, *operands)


def fold_up(node: Node, walk: Walk) -> Node | None:
    """A shuffle that ends in the rows of the products that it comes from."""
    order = order_of(node, walk)
    if order is None or not is_injective(order):
        return None
    return moved_up(node.operands[0], order, walk)


def fold_up_permutation(node: Node, walk: Walk) -> Node | None:
    """`fold_up` where it makes no matrix larger: padding is better taken by the columns behind."""
    order = order_of(node, walk)
    return None if order is None or (order < 0).any() else fold_up(node, walk)


def before_broadcast(node: Node, walk: Walk) -> Node | None:
    """shuffle . broadcast -> broadcast . shuffle."""
    order = order_of(node, walk)
    x = node.operands[0] if order is not None else node
    if order is None or x.op != "broadcast" or not leaves_channels(x) or not walk.read_once(x):
        return None
    return with_operands(x, (shuffled(x.operands[0], order, walk, node),))


def one_order(operands: tuple[Node, ...], node: Node, walk: Walk) -> Order | None:
    """The fixed order of all ``operands`` of ``node``, which nothing else reads.

    None if there is no such order, or if it takes a channel twice.
    """
    order = order_of(operands[0], walk) if operands else None
    if order is None or not is_injective(order):
        return None
    first = operands[0]
    for operand in operands:
        if order_of(operand, walk) is None or not same_value(
            operand.operands[1], first.operands[1]
        ):
            return None
        if channels(operand.operands[0]) != channels(first.operands[0]):
            return None
        if walk.readers.get(operand, 1) > node.operands.count(operand):
            return None
    return order


def sink_elementwise(node: Node, walk: Walk) -> Node | None:
    """elementwise . shuffle -> shuffle . elementwise, constants in the order from before."""
    width = channels(node) if node.op in ELEMENTWISE else None
    if width is None:
        return None
    moved = tuple(o for o in node.operands if channels(o) == width and not is_constant(o))
    order = one_order(moved, node, walk)
    if order is None or channels(moved[0].operands[0]) is None:
        return None
    if (order < 0).any() and not _stays_zero(node, order, walk):
        return None
    back = inverse(order, moved[0].operands[0].type.shape[-1])
    operands = []
    for operand in node.operands:
        if operand in moved:
            operands.append(operand.operands[0])
        elif channels(operand) == width:
            array = reordered(walk.value(operand), back)
            type = operand.type.with_shape(*array.shape)
            operands.append(walk.constant(array, operand.name, type))
        else:
            operands.append(operand)
    return shuffled(remake(node, *operands), order, walk, moved[0])


def _stays_zero(node: Node, order: Order, walk: Walk) -> bool:
    """Whether ``node`` gives 0 in the channels where ``order`` puts 0."""
    width, dead = order.size, np.flatnonzero(order < 0)
    rows = [operand for operand in node.operands if channels(operand) != width]
    if not scales_rows(node, rows):
        return False
    values = []
    for operand in node.operands:
        if operand in rows:
            values.append(np.ones(1, STORAGE[operand.type.dtype]))
        elif is_constant(operand):
            values.append(walk.value(operand)[..., dead])
        else:
            values.append(np.zeros(dead.size, STORAGE[operand.type.dtype]))
    with np.errstate(all="ignore"):
        return bool((OPS[node.op].meaning(*values, **node.attributes) == 0).all())


def sink_rows(node: Node, walk: Walk) -> Node | None:
    """A shuffle past an op on whole rows: views, sums over rows, the sum over the experts."""
    if node.op != "combine" and not (leaves_channels(node) and node.op != "broadcast"):
        return None
    parts = len(node.operands) if node.op == "concat" else 1
    moved = node.operands[:parts]
    order = one_order(moved, node, walk)
    if order is None:
        return None
    inner = tuple(operand.operands[0] for operand in moved)
    sunk = with_operands(node, (*inner, *node.operands[parts:]))
    return shuffled(sunk, order, walk, moved[0])


@dataclass(frozen=True)
class FoldPermutations:
    """Every fixed order of channels that a constant matrix can take."""

    name = "fold_permutations"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        down = compose_shuffles, fold_columns, before_broadcast, sink_elementwise, sink_rows
        graph = rewrite(graph, fold_up_permutation, *down)
        return rewrite(graph, fold_up, *down)
