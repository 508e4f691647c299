"""Choose a kernel for every op.

    %y = linear(%x, %w) : f32[65, 256]
    ->
    %y = linear(%x, %w) : f32[65, 256] @ {kernel = "linear"}

Among the records that serve an op's spec the one of least price wins, with the parameters that are
cheapest; the one of least modelled cost where one of them has no price. Ops that move no data
(`reshape`) get none: they are views.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..compiler.errors import Unsupported
from ..compiler.ir import Graph, Node, Type, constant, rebuild
from ..compiler.ir.graph import Attribute
from ..compiler.ir.interpret import constant_value
from ..compiler.ir.schedule import types_of
from ..compiler.ir.views import VIEWS
from ..kernels.lanes import Lanes
from ..kernels.record import Kernel, Spec, Tensor

_PARAMETER = "tune_"  # notes that carry a kernel's parameters
Price = Callable[[Kernel, Spec, Lanes], float | None]
# What was measured better for a spec: a kernel's name and its parameters, if anything was.
Tuned = Callable[[Spec], tuple[str, Mapping[str, int]] | None]
Way = tuple[float, str, int, Mapping[str, int]]  # price, kernel, which of its ways, parameters


def unpriced(kernel: Kernel, spec: Spec, lanes: Lanes) -> None:
    """No price is known of anything."""


def untuned(spec: Spec) -> None:
    """Nothing was measured."""


def spec_of(node: Node, tile: int | None = None) -> Spec:
    """What ``node`` asks of a kernel, with the parameters noted on it.

    Where it is computed by rows, for ``tile`` of them (by default as many as are at a time).
    """
    return spec_with(node, types_of(node, tile))


def spec_with(
    node: Node, types: tuple[tuple[Type, ...], tuple[Type, ...]], **attributes: Attribute
) -> Spec:
    """What ``node`` asks of a kernel for operands and results of these ``types``.

    ``attributes`` are asked beside its own.
    """

    def tensors(types: tuple[Type, ...]) -> tuple[Tensor, ...]:
        return tuple(Tensor(t.dtype, t.shape, t.layout) for t in types)

    parameters = sorted(
        (key.removeprefix(_PARAMETER), int(value))  # type: ignore[arg-type]
        for key, value in node.notes.items()
        if key.startswith(_PARAMETER)
    )
    operands, results = types
    return Spec(
        node.op,
        tuple(sorted({**node.attributes, **attributes}.items())),
        tensors(operands),
        tensors(results),
        tuple(parameters),
    )


def kernel_of(node: Node, kernels: tuple[Kernel, ...]) -> Kernel:
    """The kernel noted on ``node``. Raises KeyError if this target does not have it."""
    by_name = {kernel.name: kernel for kernel in kernels}
    return by_name[str(node.notes["kernel"])]


def with_kernel(node: Node, kernel: str, parameters: Mapping[str, int]) -> Node:
    """``node`` with the kernel noted that computes it, in place of any other."""
    other = {k: v for k, v in node.notes.items() if k != "kernel" and not k.startswith(_PARAMETER)}
    tuning = {_PARAMETER + key: value for key, value in sorted(parameters.items())}
    return replace(node, notes={**other, "kernel": kernel, **tuning})


def without_kernels(graph: Graph) -> Graph:
    """``graph`` as it was before kernels were chosen: constants unpacked, no notes."""
    store: dict[str, np.ndarray] = {}

    def plain(node: Node) -> Node:
        if node.op != "constant":
            return replace(node, notes={})
        type = replace(node.type, layout=None)
        unpacked = constant(store, constant_value(graph.constants, node), node.name, type)
        return replace(unpacked, source=node.source)

    return replace(rebuild(graph, plain, store), notes={})


def usable(kernel: Kernel, node: Node, spec: Spec, lanes: Lanes) -> bool:
    """Whether ``kernel`` serves ``node``: its spec, and constants where it wants packed ones."""
    if spec.op not in kernel.ops or not kernel.supports(spec, lanes):
        return False
    packed = kernel.layouts(spec, lanes)
    return all(node.operands[index].op == "constant" for index in packed)


@dataclass(frozen=True)
class SelectKernels:
    """``tuned`` says what was measured better, which is taken where it can be.

    ``price`` predicts what a call takes, or gives None. Unless ``required``, what no kernel serves
    is left without one: a library computes it.
    """

    kernels: tuple[Kernel, ...]
    lanes: Lanes
    tuned: Tuned = untuned
    price: Price = unpriced
    required: bool = True

    name = "select_kernels"
    exact = True

    def __call__(self, graph: Graph) -> Graph:
        missing: list[Node] = []

        def choose(node: Node) -> Node:
            if node.op in VIEWS:
                return node
            if not self.able(node):
                missing.append(node)
                return node
            return with_kernel(node, *(self._measured(node) or self.untuned(node)))

        chosen = rebuild(graph, choose)
        if missing and self.required:
            raise _no_kernel(missing, self.lanes)
        return chosen

    def able(self, node: Node) -> list[Kernel]:
        """The kernels that can compute ``node``, whatever kernel is noted on it."""
        spec = spec_of(node).with_parameters({})
        return [k for k in self.kernels if usable(k, node, spec, self.lanes)]

    def untuned(self, node: Node) -> tuple[str, Mapping[str, int]]:
        """The kernel that is taken where nothing was measured, and its parameters."""
        _, name, _, parameters = min(self.ways(node), key=lambda way: way[:3])
        return name, parameters

    def ways(self, node: Node) -> list[Way]:
        """How ``node`` may be computed, whatever kernel is noted on it, with prices."""
        return self._ways(self.able(node), spec_of(node).with_parameters({}))

    def _measured(self, node: Node) -> tuple[str, Mapping[str, int]] | None:
        """What was measured better for ``node``, if anything was that can still be done."""
        found = self.tuned(spec_of(node))
        if found is None:
            return None
        name, parameters = found
        spec = spec_of(node).with_parameters(parameters)
        there = any(k.name == name and usable(k, node, spec, self.lanes) for k in self.kernels)
        return found if there else None

    def _ways(self, able: list[Kernel], spec: Spec) -> list[Way]:
        """Those of all kernels where all have prices; else of the one of least cost."""
        priced = [ways for kernel in able if (ways := self._priced(kernel, spec))]
        if len(priced) < len(able):
            least = min(able, key=lambda kernel: (kernel.cost(spec, self.lanes), kernel.name))
            priced = [self._priced(least, spec) or [(0, least.name, 0, {})]]
        return [way for ways in priced for way in ways]

    def _priced(self, kernel: Kernel, spec: Spec) -> list[Way]:
        """All ways of a kernel that have a price."""
        found: list[Way] = []
        for i, parameters in enumerate(kernel.space(spec, self.lanes)):
            way = spec.with_parameters(parameters)
            price = self.price(kernel, way, self.lanes)
            if price is not None and kernel.supports(way, self.lanes):
                found.append((price, kernel.name, i, parameters))
        return found


def _no_kernel(nodes: list[Node], lanes: Lanes) -> Unsupported:
    counts = Counter(
        f"{node.op}({', '.join(str(operand.type) for operand in node.operands)})" for node in nodes
    )
    first = {f"{n.op}": n.source or n.name for n in reversed(nodes)}
    lines = "; ".join(f"{what} ({count}x)" for what, count in counts.items())
    return Unsupported(
        f"no {lanes.name} kernel for: {lines}",
        where=", ".join(dict.fromkeys(first.values())),
        help="write a kernel (docs/extending.md), or rewrite the model with other ops",
    )
