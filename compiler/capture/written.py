"""What forward writes to: its buffers, constants and inputs, beside what it returns.

A compiled model keeps no state and leaves its inputs alone, so such writes are left out: of inputs
always, of what the model keeps where no result depends on it, as with counters of tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from .claims import MARK

_WRITES = frozenset(
    {OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION, OutputKind.USER_INPUT_MUTATION}
)
# Calls that take of their first argument only its shape.
_SHAPE_ONLY = frozenset({"copy", "fill", "zero", "zeros_like", "ones_like", "full_like"})


def with_constants_as_buffers(program: ExportedProgram) -> ExportedProgram:
    """The program whose constants may be written to: torch lets it write to buffers only."""
    twin = copy.copy(program)
    twin._graph_signature = copy.deepcopy(program.graph_signature)
    for spec in twin._graph_signature.input_specs:
        if spec.kind == InputKind.CONSTANT_TENSOR:
            spec.kind, spec.persistent = InputKind.BUFFER, False
    return twin


@dataclass(frozen=True)
class Writes:
    """``kept``: what results depend on, with the values written to it; ``needed``: the nodes that
    serve a result, a mark or such a write, and all inputs.
    """

    kept: tuple[tuple[str, fx.Node], ...]
    needed: frozenset[fx.Node]

    @classmethod
    def of(cls, program: ExportedProgram) -> Writes:
        specs = program.graph_signature.output_specs
        (returned,) = program.graph.output_node().args
        assert isinstance(returned, tuple | list), "torch.export returns a tuple"
        results = list(zip(specs, returned, strict=True))
        writes = [(spec, node) for spec, node in results if spec.kind in _WRITES]
        others = [node for spec, node in results if spec.kind not in _WRITES]
        read = _kept_in(program, _needed_by(others, _read_by))
        kept = tuple((str(spec.target), node) for spec, node in writes if spec.target in read)
        marks = [node for node in program.graph.nodes if str(node.target) == MARK]
        needed = _needed_by([*others, *marks, *(node for _, node in kept)])
        ends = [node for node in program.graph.nodes if node.op != "call_function"]
        return cls(kept, frozenset({*needed, *ends}))


def _kept_in(program: ExportedProgram, nodes: Iterable[fx.Node]) -> set[str]:
    """The buffers, constants and parameters among ``nodes``."""
    names = {node.name for node in nodes}
    return {
        spec.target
        for spec in program.graph_signature.input_specs
        if spec.target is not None and spec.arg.name in names
    }


def _needed_by(
    values: Iterable[Any],
    read_by: Callable[[fx.Node], list[fx.Node]] = attrgetter("all_input_nodes"),
) -> set[fx.Node]:
    """The nodes whose values ``values`` depend on, themselves among them."""
    found: set[fx.Node] = set()
    stack = [value for value in values if isinstance(value, fx.Node)]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += read_by(node)
    return found


def _read_by(node: fx.Node) -> list[fx.Node]:
    """The nodes whose numbers a call reads, not their shapes alone."""
    bare = str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""
    if bare not in _SHAPE_ONLY:
        return node.all_input_nodes
    return [arg for arg in (*node.args[1:], *node.kwargs.values()) if isinstance(arg, fx.Node)]
