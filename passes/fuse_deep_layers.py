"""One op for a whole layer whose rotations have more layers than `fuse_experts` takes.

    %2 = rotate(%1, %theta0, %experts)        blocks f32[E, 16, 4, 4], rows f32[T, 1, 64]
    %3 = shuffle(%2, %order)
    %4 = rotate(%3, %theta1, %experts)        blocks f32[E, 32, 2, 2]
    %5 = ternary_matmul(%4, %w, %scale)
    %6 = add(%5, %bias)
    %7 = gelu(%6)
    %8 = rotate(%7, %phi, %experts)
    %9 = combine(%8, %gates) : f32[T, F]
    %y = linear(%9, %w_down) : f32[T, d]
    ->
    %y = butterfly_deep_layer(%x, %theta, %w, %scale, %bias, %gates, %experts, %phi,
             %theta.partners, %phi.partners, %w_down) {activation = "gelu", kept = 64}

Channels keep their places over a whole rotation, so every layer is channels times cosines, plus
partners times sines, and no shuffle is left between layers: the last order of a rotation goes into
the columns of W_hat, the first one behind W_hat into its rows. Channels that an order sets to zero
on the way are further channels of W_hat, zeros as they enter; those that it drops are not kept.

A single rotation on either side is left to `fuse_experts`, if it has whole groups of four.
Blocks that are no product of Givens rotations, and orders that take a channel twice, stay; so do an
activation in front of the second rotation that is not zero at zero, where that has such further
channels, and codes of rows of which channels are dropped, since their scale is of the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..compiler.ir import Graph, Node, Type, make
from ..compiler.ir.ops.elementwise import ACTIVATIONS
from ..compiler.ir.ops.layer import TURNED
from .base import Walk, is_constant, rewrite
from .fuse_experts import Chain, tokens_of
from .fuse_layers import down
from .givens import TOLERANCE, pairs_of
from .orders import Order, inverse, is_injective, order_of, reordered
from .rules_shape import compose_reshapes, drop_identity

Array = np.ndarray
# Activations that leave zeros alone.
STILL = frozenset(name for name, of in ACTIVATIONS.items() if not of(np.zeros(1)).any())
# Shuffles and rotations in a row, first to last: an order of channels, or blocks [E, G, b, b].
Steps = list[Array]


@dataclass(frozen=True)
class Turn:
    """A rotation of n channels in layers: pairs [E, L, n, 2] and partners [L, n].

    ``enters`` [n] is the channel of the rotated rows that each begins as, -1 for a zero; ``leaves``
    are the channels that it gives, in their order.
    """

    pairs: Array
    partners: Array
    enters: Order
    leaves: Order

    def constants(self, name: str, walk: Walk) -> tuple[Node, Node]:
        """Pairs and partners as nodes."""
        pairs = walk.constant(self.pairs, f"{name}.pairs")
        return pairs, walk.constant(self.partners, f"{name}.partners")

    def moved(self, to: Order) -> Turn:
        """The same with channel ``to[i]`` in place i."""
        places = np.argsort(to)
        return Turn(
            self.pairs[:, :, to],
            places[self.partners[:, to]].astype(np.int32),
            self.enters[to],
            places[self.leaves].astype(np.int32),
        )


@dataclass
class Passed:
    """What a chain has passed: ``steps``, the experts that they are of, a name of their blocks."""

    steps: Steps = field(default_factory=list)
    experts: Node | None = None
    name: str = ""


def steps_of(chain: Chain) -> Passed | None:
    """The rotations and shuffles just passed; None for some that do not go together."""
    found = Passed()
    while True:
        node = chain.at
        order = order_of(node, chain.walk)
        if order is not None and chain.walk.read_once(node):
            found.steps.insert(0, order)
        elif node.op == "rotate" and is_constant(node.operands[1]) and node["lanes"] == 1:
            found.experts = found.experts or node.operands[2]
            if found.experts is not node.operands[2] or not chain.walk.read_once(node):
                return None
            found.name = node.operands[1].name
            found.steps.insert(0, chain.walk.value(node.operands[1]).astype(np.float64))
        else:
            return found
        chain.at = node.operands[0]


def is_plain(steps: Steps, rows: Type) -> bool:
    """Whether ``steps`` are one rotation in whole groups of four, which `fuse_experts` takes."""
    return len(steps) == 1 and steps[0].ndim == 4 and rows.shape[-1] % 4 == 0


def turn_of(steps: Steps, width: int, experts: int) -> Turn | None:
    """``steps`` on rows of ``width`` channels; without a rotation, one layer that does nothing."""
    enters, here = list(range(width)), np.arange(width)
    layers: list[tuple[Array, Array, Array]] = []  # channels, partners, pairs [E, channels, 2]
    for step in steps:
        if step.ndim == 4:
            found = block_layers(step)
            if found is None:
                return None
            layers += [(here, here[partners], pairs) for partners, pairs in found[0]]
            here = here[found[1]]
            continue
        if not is_injective(step):
            return None
        zeros = len(enters) + np.arange((step < 0).sum())
        enters += [-1] * zeros.size
        here = here[np.maximum(step, 0)]
        here[step < 0] = zeros
    n = len(enters)
    pairs = np.broadcast_to([1.0, 0.0], (experts, max(len(layers), 1), n, 2)).copy()
    partners = np.tile(np.arange(n, dtype=np.int32), (pairs.shape[1], 1))
    for i, (channels, partner, values) in enumerate(layers):
        pairs[:, i, channels], partners[i, channels] = values, partner
    return Turn(pairs, partners, np.array(enters, np.int32), here.astype(np.int32))


def block_layers(blocks: Array) -> tuple[list[tuple[Array, Array]], Order] | None:
    """Blocks [E, G, b, b] of b = 2 or 4 as layers, and the order that they leave channels in.

    A layer is partners [n] and pairs [E, n, 2].
    """
    experts, groups, size, _ = blocks.shape
    if size == 2:
        c, s = blocks[..., 0, 0], blocks[..., 1, 0]
        turns = np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)
        if np.abs(blocks - turns).max(initial=0) > TOLERANCE:
            return None
        pairs = np.stack([np.stack([c, -s], -1), np.stack([c, s], -1)], -2)
        channels = np.arange(2 * groups)
        return [(channels ^ 1, pairs.reshape(experts, -1, 2))], channels
    found = pairs_of(blocks) if size == 4 else None
    if found is None:
        return None
    angles, order = found
    taken, given = np.array(order[:4]), np.array(order[4:])
    layers = []
    for first in (0, 2):
        partner, pairs = np.zeros(4, int), np.zeros((experts, groups, 4, 2))
        for i in (first, first + 1):
            a, b = taken[list(TURNED[i])]
            partner[[a, b]] = b, a
            c, s = angles[..., i, 0], angles[..., i, 1]
            pairs[..., a, :], pairs[..., b, :] = np.stack([c, -s], -1), np.stack([c, s], -1)
        layers.append((in_groups(partner, groups), pairs.reshape(experts, -1, 2)))
    # Each member stays where it was taken from, and is wanted where it is given.
    return layers, in_groups(taken[np.argsort(given)], groups)


def in_groups(members: Array, groups: int) -> Array:
    """Channels [4 * groups], by what each is in its group of four."""
    return (4 * np.arange(groups)[:, None] + members).ravel()


def fuse(node: Node, walk: Walk) -> Node | None:
    """`combine` over a chain in, a ternary product and a chain out as `butterfly_deep_layer`."""
    if node.op != "combine" or node.type.rank != 2:
        return None
    gates, chain = node.operands[1], Chain(node.operands[0], walk)
    last = chain.step(*ACTIVATIONS)
    after = steps_of(chain)
    first = None if last else chain.step(*ACTIVATIONS)
    bias, product = chain.bias(), chain.product()
    before = None if product is None else steps_of(chain)
    if product is None or before is None or before.experts is None or after is None:
        return None
    experts, rows = before.experts, chain.at
    if after.experts not in (None, experts) or experts.type.shape != gates.type.shape:
        return None
    if rows.type.rank != 3 or rows.type.shape[1] != 1:
        return None
    if is_plain(before.steps, rows.type) and (not after.steps or is_plain(after.steps, node.type)):
        return None
    weights, scale, bits = product
    if bits not in (0, 8):
        return None
    count = next(len(step) for step in before.steps if step.ndim == 4)
    turn_in = turn_of(before.steps, rows.type.shape[2], count)
    turn_out = turn_of(after.steps, weights.type.shape[0], count)
    if turn_in is None or turn_out is None or not (is_constant(weights) and is_constant(scale)):
        return None
    if bits and turn_in.leaves.size < turn_in.enters.size:
        return None
    activation = last or first
    turn_out, kept = kept_first(turn_out)
    if first and first.op not in STILL and (turn_out.enters < 0).any():
        return None
    pairs_in, partners_in = turn_in.constants(before.name, walk)
    pairs_out, partners_out = turn_out.constants(after.name or node.name, walk)
    return make(
        "butterfly_deep_layer",
        tokens_of(rows),
        pairs_in,
        *between(node, weights, scale, bias, turn_in, turn_out, walk),
        gates,
        experts,
        pairs_out,
        partners_in,
        partners_out,
        name=node.name,
        source=node.source,
        dtype=node.type.dtype,
        activation=activation.op if activation else "none",
        activate_last=last is not None,
        activation_bits=bits,
        biased=bias is not None,
        kept=kept,
    )


def between(
    node: Node,
    weights: Node,
    scale: Node,
    bias: Node | None,
    turn_in: Turn,
    turn_out: Turn,
    walk: Walk,
) -> tuple[Node, Node, Node]:
    """W_hat, its scale and a bias from the channels that one rotation has to those of the other."""
    columns = inverse(turn_in.leaves, turn_in.enters.size)
    rows = turn_out.enters
    matrix = reordered(reordered(walk.value(weights), columns), rows, 0)
    values = np.zeros(weights.type.shape[0]) if bias is None else walk.value(bias).ravel()
    name = f"{node.name}.zeros" if bias is None else bias.name
    scales = walk.value(scale)
    if scales.ndim:
        moved = scale.type.with_shape(*rows.shape)
        scale = walk.constant(reordered(scales, rows), scale.name, moved)
    bias_type = node.type.with_shape(*rows.shape)
    return (
        walk.constant(matrix, weights.name, weights.type.with_shape(*matrix.shape)),
        scale,
        walk.constant(reordered(values, rows).astype(bias_type.storage), name, bias_type),
    )


def kept_first(turn: Turn) -> tuple[Turn, int]:
    """``turn`` with what leaves in front, in its order, and how much that is."""
    dropped = np.setdiff1d(np.arange(len(turn.enters)), turn.leaves)
    return turn.moved(np.concatenate([turn.leaves, dropped])), turn.leaves.size


@dataclass(frozen=True)
class FuseDeepLayers:
    """Every mixture that has the form above."""

    name = "fuse_deep_layers"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        return rewrite(graph, fuse, down, compose_reshapes, drop_identity)
