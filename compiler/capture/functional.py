"""In-place calls of an exported program made functional, where it is plain what they write to.

    v = select(z, 1, 3); copy_(v, x); use(z)  ->  z1 = select_scatter(z, copy(v, x), 1, 3); use(z1)

torch's own way traces the whole program once more. This one rewrites its graph, and gives up where
a value may or may not share its memory with another: what reshape makes of turned axes, what a
call written by other calls returns.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from .calls import fixed_calls, is_known_and_pure

aten: Any = torch.ops.aten
# (graph, base, new value of the view, arguments of the view's call) -> new value of the base
Inverse = Callable[[fx.Graph, fx.Node, fx.Node, tuple[Any, ...]], fx.Node]
# Calls that torch writes by other calls, of which none returns what it was given.
NEVER_SHARE = frozenset({"conv1d", "conv2d", "layer_norm", "linear", "log_softmax", "matmul"}) | {
    "one_hot", "rms_norm", "scaled_dot_product_attention", "softmax", "tensordot",
}  # fmt: skip


class Unclear(Exception):
    """The rewrite cannot tell what an in-place call writes to."""


def made_functional(program: ExportedProgram) -> bool:
    """Whether ``program`` now has only calls that are known and write nothing.

    It stays as it is where that cannot be had.
    """
    try:
        graph = _Rewriter(program.graph).graph()
    except Unclear:
        return False
    fixed = {node.name for node in fixed_calls(program)}
    new = (node for node in graph.nodes if node.name not in fixed)
    if not all(is_known_and_pure(node) for node in new):
        return False
    program.graph_module.graph = graph
    # The results may have other names now; the program's signature tells them.
    (results,) = graph.output_node().args
    assert isinstance(results, tuple | list), "torch.export returns a tuple"
    for spec, result in zip(program.graph_signature.output_specs, results, strict=True):
        if isinstance(result, fx.Node):
            spec.arg.name = result.name
    return True


@dataclass
class _Memory:
    """Memory that a value of its own has: its latest value, and how often it was written to.

    ``perhaps``: memory that it may really be part of, each as often written to as then.
    """

    value: fx.Node
    writes: int = 0
    writable: bool = True
    perhaps: tuple[tuple[_Memory, int], ...] = ()


@dataclass
class _View:
    """A value in the new graph: the memory it shares, the calls that led there, as of when."""

    memory: _Memory
    path: tuple[fx.Node, ...]  # calls of the old graph, from the memory's whole value on
    value: fx.Node
    writes: int = 0


class _Rewriter:
    def __init__(self, old: fx.Graph) -> None:
        self.old = old
        self.new = fx.Graph()
        self.views: dict[fx.Node, _View] = {}  # by node of the old graph

    def graph(self) -> fx.Graph:
        """The new graph. Raises Unclear."""
        for node in self.old.nodes:
            if is_in_place(node):
                self._write(node)
            else:
                self._copy(node)
        return self.new

    def _copy(self, node: fx.Node) -> None:
        made = self.new.node_copy(node, self._now)
        if node.target is aten.detach_.default:
            made.target = aten.detach.default
        source = _viewed(node)
        if source is None:
            self.views[node] = _View(self._memory(node, made), (), made)
        else:
            view = self.views[source]
            self.views[node] = _View(view.memory, (*view.path, node), made, view.memory.writes)

    def _memory(self, node: fx.Node, made: fx.Node) -> _Memory:
        """The memory of a value that, as far as torch says, is its own."""
        if node.op != "call_function":
            return _Memory(made, writable=False)
        if not _may_share(node):
            return _Memory(made, writable=isinstance(node.meta.get("val"), Tensor))
        sources = [self.views[n].memory for n in node.all_input_nodes]
        perhaps = [(memory, memory.writes) for memory in sources]
        perhaps += [pair for memory in sources for pair in memory.perhaps]
        return _Memory(made, writable=False, perhaps=tuple(perhaps))

    def _now(self, node: fx.Node) -> fx.Node:
        """What ``node`` of the old graph is at this point, after all that was written."""
        view = self.views[node]
        if any(memory.writes > writes for memory, writes in view.memory.perhaps):
            raise Unclear(f"{node.name} may share what was written to")
        if view.writes == view.memory.writes:
            return view.value
        value = view.memory.value
        for call in view.path:
            value = self._again(call, value)
        view.value, view.writes = value, view.memory.writes
        return value

    def _again(self, call: fx.Node, base: fx.Node) -> fx.Node:
        """The view that ``call`` makes, of the value ``base``."""
        if call.target not in INVERSES:
            raise Unclear(str(call.target))
        target: Any = aten.detach.default if call.target is aten.detach_.default else call.target
        made = self.new.call_function(target, (base, *self._rest(call)), dict(call.kwargs))
        made.meta = dict(call.meta)
        return made

    def _write(self, node: fx.Node) -> None:
        """The functional call, and the memory's value with its result in it."""
        target = node.args[0]
        view = self.views.get(target) if isinstance(target, fx.Node) else None
        function = _functional(node)
        if view is None or function is None or not view.memory.writable:
            raise Unclear(str(node.target))
        assert isinstance(target, fx.Node), "checked above"
        _check_dtypes(node, target)
        bases = [view.memory.value]
        for call in view.path:
            bases.append(self._again(call, bases[-1]))
        args = fx.map_arg(node.args[1:], self._now)
        named = fx.map_arg(dict(node.kwargs), self._now)
        value = self.new.call_function(function, (bases[-1], *args), named)
        value.meta = {**node.meta, "val": target.meta["val"]}
        for call, base in zip(reversed(view.path), reversed(bases[:-1]), strict=True):
            value = self._into(base, value, call, node)
        view.memory.value = value
        view.memory.writes += 1
        self.views[node] = _View(view.memory, view.path, value, -1)

    def _into(self, base: fx.Node, value: fx.Node, call: fx.Node, node: fx.Node) -> fx.Node:
        """``base`` with ``value`` in the place that ``call`` views."""
        inverse = INVERSES.get(call.target)
        if inverse is None:
            raise Unclear(str(call.target))
        made = inverse(self.new, base, value, self._rest(call))
        made.meta = {**node.meta, "val": base.meta["val"]}
        return made

    def _rest(self, call: fx.Node) -> tuple[Any, ...]:
        """The arguments of a view's call but for what it is a view of."""
        rest: tuple[Any, ...] = fx.map_arg(call.args[1:], self._now)
        return rest


def _may_share(node: fx.Node) -> bool:
    """Whether a call may return what it was given, though its schema does not say so."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target is not operator.getitem
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(
        node.target.name(),  # type: ignore[no-untyped-call]
        "CompositeImplicitAutograd",
    )
    return composite and str(node.target).split(".")[1] not in NEVER_SHARE


def is_in_place(node: fx.Node) -> bool:
    """Whether a call writes to what it is given; detaching in place writes nothing."""
    if node.target is aten.detach_.default:
        return False
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _viewed(node: fx.Node) -> fx.Node | None:
    """The node whose memory ``node`` may share; None for a value of its own."""
    if node.target is operator.getitem:
        source = node.args[0]
        return source if isinstance(source, fx.Node) and _viewed(source) is not None else None
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    shares = any(result.alias_info is not None for result in node.target._schema.returns)
    return node.args[0] if shares and isinstance(node.args[0], fx.Node) else None


def _functional(node: fx.Node) -> Any:
    """The call that makes what an in-place call ``name_`` of its first argument writes."""
    name, _, overload = str(node.target).removeprefix("aten.").partition(".")
    written = [arg for arg in node.target._schema.arguments if arg.alias_info is not None]  # type: ignore[union-attr]
    if not name.endswith("_") or name.endswith("__") or len(written) != 1:
        return None
    if not written[0].alias_info.is_write or written[0] is not node.target._schema.arguments[0]:  # type: ignore[union-attr]
        return None
    function = getattr(getattr(aten, name[:-1], None), overload, None)
    # What turns or stretches a value in place is a view without the underscore.
    if function is None or any(
        result.alias_info is not None for result in function._schema.returns
    ):
        return None
    return function


def _check_dtypes(node: fx.Node, target: fx.Node) -> None:
    """Raises Unclear where the functional call may give another dtype, or another shape."""
    if str(node.target).startswith("aten.copy_"):
        return
    dtype = target.meta["val"].dtype
    for other in node.all_input_nodes:
        value = other.meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != dtype:
            raise Unclear(f"{node.target} of {value.dtype} into {dtype}")
    if not dtype.is_floating_point and any(isinstance(arg, float) for arg in node.args):
        raise Unclear(f"{node.target} of a float into {dtype}")


# --- how each view is written to: the whole value from the view's ---


def _select(graph: fx.Graph, base: fx.Node, value: fx.Node, rest: tuple[Any, ...]) -> fx.Node:
    return graph.call_function(aten.select_scatter.default, (base, value, *rest))


def _slice(graph: fx.Graph, base: fx.Node, value: fx.Node, rest: tuple[Any, ...]) -> fx.Node:
    return graph.call_function(aten.slice_scatter.default, (base, value, *rest))


def _shape(graph: fx.Graph, base: fx.Node, value: fx.Node, rest: tuple[Any, ...]) -> fx.Node:
    shape = list(base.meta["val"].shape)
    if not all(isinstance(size, int) for size in shape):
        raise Unclear("a view of open size")
    return graph.call_function(aten.view.default, (value, shape))


def _transpose(graph: fx.Graph, base: fx.Node, value: fx.Node, rest: tuple[Any, ...]) -> fx.Node:
    return graph.call_function(aten.transpose.int, (value, *rest))


def _same(graph: fx.Graph, base: fx.Node, value: fx.Node, rest: tuple[Any, ...]) -> fx.Node:
    return value


INVERSES: dict[Any, Inverse] = {
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.view.default: _shape,
    aten.unsqueeze.default: _shape,
    aten.squeeze.dim: _shape,
    aten.transpose.int: _transpose,
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.detach_.default: _same,
}
