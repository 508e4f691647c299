"""The graph with another number of experts in each routed layer: its sizes, not its results.

    %scores = linear(%x, %router)    router f32[8, 256], scores f32[65, 8]
    %y = rotate(%x, %blocks, %experts)    blocks f32[8, 64, 4, 4]
    ->
    router f32[3, 256], scores f32[65, 3], blocks f32[3, 64, 4, 4]

Of experts that are too many the last ones go; where more are wanted, those that are there come
again.

With ``stand_ins`` what experts own is replaced by arrays of the right sizes that take no memory:
constants may be packed, and kernels chosen, so that a lowered graph has the bytes it would have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..compiler.errors import UsageError
from ..compiler.ir import Graph, Node, Type, constant, rebuild
from ..compiler.ir.types import STORAGE
from ..kernels.layout import storage
from ..kernels.record import Tensor
from .base import pruned
from .expert_parts import Routed, routed_layers


@dataclass(frozen=True)
class ResizeExperts:
    """``count`` experts a layer. Raises UsageError if that is less than a row goes to."""

    count: int
    stand_ins: bool = False

    name = "resize_experts"
    exact = False

    def __call__(self, graph: Graph) -> Graph:
        layers = routed_layers(graph)
        most = max((layer.chosen for layer in layers), default=0)
        if self.count < most:
            raise UsageError(
                f"{self.count} experts where a row goes to {most}",
                help=f"{most} experts are the fewest",
            )
        axes = {node: axis for layer in layers for node, axis in _owned(layer)}
        scores = {node.name for layer in layers for node in layer.scores}
        store = dict(graph.constants)
        named = {node.name: axis for node, axis in axes.items()}

        def resized(node: Node) -> Node:
            if node.name in named and node.op == "constant":
                return self._constant(graph, node, named[node.name], store)
            return _wider(node, self.count) if node.name in scores else node

        return pruned(rebuild(graph, resized, store))

    def _constant(self, graph: Graph, node: Node, axis: int, store: dict[str, np.ndarray]) -> Node:
        type = _with_axis(node.type, axis, self.count)
        if self.stand_ins:
            held, digest = _stand_in(type), f"{node['digest']}.{self.count}"
            store[digest] = held
            return replace(node, types=(type,), attributes={"digest": digest})
        array = np.take(graph.value(node), np.arange(self.count), axis, mode="wrap")
        return replace(constant(store, array, node.name, type), source=node.source)


def _owned(layer: Routed) -> Iterator[tuple[Node, int]]:
    """What experts own, with the axis that counts them."""
    for node in layer.rotations:
        yield node, 0
    for node in layer.router:
        yield node, 0 if node.type.shape[0] == layer.count else node.type.rank - 1


def _with_axis(type: Type, axis: int, count: int) -> Type:
    shape = list(type.shape)
    shape[axis] = count
    return replace(type, shape=tuple(shape))


def _wider(node: Node, count: int) -> Node:
    """A node of the scores, with ``count`` of them in its last axis."""
    types = tuple(_with_axis(type, type.rank - 1, count) for type in node.types)
    shape = {"shape": types[0].shape} if node.op == "reshape" else {}
    return replace(node, types=types, attributes={**node.attributes, **shape})


def _stand_in(type: Type) -> np.ndarray:
    """Zeros as large as a tensor of that type is in memory, which take none themselves."""
    stored = storage(Tensor(type.dtype, type.shape, type.layout))
    return np.broadcast_to(np.zeros((), STORAGE[stored.dtype]), stored.shape)
