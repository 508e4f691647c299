"""One op for a whole layer: rotations as angles, and the shared linear map behind the experts.

    %1 = butterfly_experts(%x, %theta, %w, %scale, %bias, %gates, %experts, %phi) : f32[T, F]
    %y = linear(%1, %w_down) : f32[T, d]
    ->
    %y = butterfly_layer(%x, %pairs, %w, %scale, %bias, %gates, %experts, %pairs_out, %w_down)
             {order_in = [0, 1, 2, 3, 0, 1, 2, 3], order_out = [...], activation = "gelu"}

A 4 x 4 block becomes the cosines and sines of the four Givens rotations that it is a product of:
half as many numbers, and the same work. Two 2 x 2 blocks become one such group, whose later
rotations are by nothing, and so does a rotation that is not there. Blocks that are no such product,
or only but for more than 1e-6, and widths that are no multiple of four, stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from ..compiler.ir import Graph, Node, make
from ..compiler.ir.ops import OPS
from ..compiler.ir.ops.layer import IN_ORDER, turn
from .base import Walk, is_constant, rewrite

# Ops for whole layers, whose last operand is w_down, if there is one.
LAYERS = frozenset({"butterfly_layer", "butterfly_deep_layer"})
TOLERANCE = 1e-6
ROUNDING = 1e-13
TINY = 1e-30
# Which channels of a group may be turned with each other first, and which two of them next.
TAKEN = ((0, 1, 2, 3), (0, 1, 3, 2), (0, 2, 1, 3), (0, 2, 3, 1), (0, 3, 1, 2), (0, 3, 2, 1))
Order = tuple[int, ...]
Pairs = tuple[np.ndarray, Order]


def pairs_of(blocks: np.ndarray) -> Pairs | None:
    """Blocks [E, G, b, b] as pairs (cos, sin) [E, groups of 4, 4, 2], and their order."""
    _, groups, size, _ = blocks.shape
    if groups * size % 4:
        return None
    if size == 2:
        return _of_twos(blocks)
    orders = [taken + given for taken in TAKEN for given in permutations(range(4))]
    # Of a sample, since there are many orders. Small angles fit several of them nearly, one best;
    # orders that say the same in other words fit alike, and the first of them is taken.
    sample = blocks[:4, :16]
    errors = {order: _error(sample, _of_fours(sample, order), order) for order in orders}
    least = min(errors.values())
    best = next(order for order, error in errors.items() if error <= least + ROUNDING)
    pairs = _of_fours(blocks, best)
    return (pairs, best) if _error(blocks, pairs, best) <= TOLERANCE else None


def identity_pairs(width: int) -> np.ndarray:
    """The pairs of rotations by nothing, one expert's: [1, width / 4, 4, 2]."""
    return np.broadcast_to([1.0, 0.0], (1, width // 4, 4, 2)).copy()


def _of_twos(blocks: np.ndarray) -> Pairs | None:
    cosine, sine = blocks[..., 0, 0], blocks[..., 1, 0]
    turns = np.stack([np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)], -2)
    if np.abs(blocks - turns).max(initial=0) > TOLERANCE:
        return None
    first = blocks[..., 0].reshape(len(blocks), -1, 2, 2)  # a column is (cos, sin)
    return np.concatenate([first, np.broadcast_to([1.0, 0.0], first.shape)], 2), IN_ORDER


def _of_fours(blocks: np.ndarray, order: Order) -> np.ndarray:
    """The one candidate in this order.

    With (c, s) the first turns' a, A and the later ones' b, B, the rows 0 and 2 of members are, in
    their first two columns, (b.c, b.s) times (a.c, -a.s), and rows 1 and 3 are (B.c, B.s) times
    (a.s, a.c); in their last two columns rows 0 and 2 are (-b.s, b.c) times (A.c, -A.s).
    """
    blocks = blocks[..., order[4:], :][..., order[:4]]
    left, other, right = blocks[..., ::2, :2], blocks[..., 1::2, :2], blocks[..., ::2, 2:]
    larger = np.argmax(np.abs(left).sum(-1), -1)[..., None, None]
    row = np.take_along_axis(left, larger, -2)[..., 0, :]
    row = row / np.maximum(np.linalg.norm(row, axis=-1, keepdims=True), TINY)
    a = np.stack([row[..., 0], -row[..., 1]], -1)
    b = (left @ row[..., None])[..., 0]
    later = (other @ a[..., ::-1, None])[..., 0]
    turned = np.stack([-b[..., 1], b[..., 0]], -1)
    # Cosines and sines that were rounded are not quite of length one: all of it goes into b and B.
    length = np.maximum((b * b).sum(-1, keepdims=True), TINY)
    column = (turned[..., None, :] @ right)[..., 0, :] / length
    second = np.stack([column[..., 0], -column[..., 1]], -1)
    return np.stack([a, second, b, later], -2) + 0.0  # no zero is negative


def _error(blocks: np.ndarray, pairs: np.ndarray, order: Order) -> float:
    """How far ``pairs`` are from turning as ``blocks`` [E, G, 4, 4] do."""
    _, groups, size, _ = blocks.shape
    # Each member of a group alone, in every group at once: the columns of the blocks.
    units = np.tile(np.eye(size), (1, groups))  # [member, channels]
    turned = turn(units[None], pairs[:, None], order)  # [E, member, channels]
    wanted = blocks.transpose(0, 3, 1, 2).reshape(turned.shape)
    return float(np.abs(turned - wanted).max(initial=0))


def layer(node: Node, walk: Walk) -> Node | None:
    """`butterfly_experts` as `butterfly_layer`, if its rotations are Givens rotations."""
    if node.op != "butterfly_experts" or node["lanes_in"] != 1 or node["lanes_out"] != 1:
        return None
    x, blocks_in, w, scale, bias, gates, experts, *rest = node.operands
    if w.type.shape[0] % 4 or not all(map(is_constant, (blocks_in, *rest))):
        return None
    before = pairs_of(walk.value(blocks_in).astype(np.float64))
    count = blocks_in.type.shape[0]
    still = np.repeat(identity_pairs(w.type.shape[0]), count, 0), IN_ORDER
    after = pairs_of(walk.value(rest[0]).astype(np.float64)) if rest else still
    if before is None or after is None:
        return None
    names = [f"{blocks_in.name}.pairs", f"{rest[0].name if rest else node.name}.pairs"]
    pairs_in, pairs_out = map(walk.constant, (before[0], after[0]), names)
    same = ("activation", "activate_last", "activation_bits", "biased")
    return make(
        "butterfly_layer",
        *(x, pairs_in, w, scale, bias, gates, experts, pairs_out),
        name=node.name,
        source=node.source,
        dtype=node.type.dtype,
        order_in=before[1],
        order_out=after[1],
        **{key: node[key] for key in same},
    )


def down(node: Node, walk: Walk) -> Node | None:
    """The linear map behind a layer of either op, as the last step of the layer."""
    if node.op != "linear" or node["activation"] != "none" or len(node.operands) != 2:
        return None
    inner, w_down = node.operands
    whole = inner.op in LAYERS and len(inner.operands) == len(OPS[inner.op].names) - 1
    if not (whole and walk.read_once(inner) and is_constant(w_down)):
        return None
    return replace(inner, operands=(*inner.operands, w_down), types=node.types, name=node.name)


@dataclass(frozen=True)
class FuseLayers:
    """Every mixture of one op whose rotations are Givens rotations of neighbours."""

    name = "fuse_layers"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        return rewrite(graph, layer, down)
