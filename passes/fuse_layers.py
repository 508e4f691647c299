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

import numpy as np

from ..compiler.ir import Graph, Node, make
from ..compiler.ir.ops import OPS
from ..compiler.ir.ops.layer import IN_ORDER
from .base import Walk, is_constant, rewrite
from .givens import pairs_of

# Ops for whole layers, whose last operand is w_down, if there is one.
LAYERS = frozenset({"butterfly_layer", "butterfly_deep_layer"})


def identity_pairs(width: int) -> np.ndarray:
    """The pairs of rotations by nothing, one expert's: [1, width / 4, 4, 2]."""
    return np.broadcast_to([1.0, 0.0], (1, width // 4, 4, 2)).copy()


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
