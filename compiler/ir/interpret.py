"""The interpreter: what a graph means, in NumPy. If compiled code differs, the code is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...kernels.layout import unpack
from ..errors import BadInput
from .graph import Graph, Node
from .ops import OPS
from .ops.elementwise import cast
from .types import Type

Observer = Callable[[Node, Any], None]


def interpret(
    graph: Graph,
    *inputs: np.ndarray,
    precision: str | None = None,
    observe: Observer | None = None,
) -> tuple[np.ndarray, ...]:
    """The outputs of ``graph`` on ``inputs``.

    ``precision="f64"`` computes every float in double precision; integers are as always.
    ``observe(node, value)`` is called after each node. Raises BadInput if an input does not fit.
    """
    if len(inputs) != len(graph.inputs):
        raise BadInput(f"{graph.name} takes {len(graph.inputs)} inputs, got {len(inputs)}")
    given = {node: check_input(node, x) for node, x in zip(graph.inputs, inputs, strict=True)}
    values: dict[Node, Any] = {}
    remaining = {node: len(users) for node, users in graph.users.items()}
    outputs = set(graph.outputs)
    for node in graph.nodes:
        values[node] = _evaluate(graph, node, values, given, precision)
        if observe is not None:
            observe(node, values[node])
        for operand in node.operands:
            remaining[operand] -= 1
            if remaining[operand] == 0 and operand not in outputs:
                del values[operand]
    return tuple(values[node] for node in graph.outputs)


def check_input(node: Node, array: np.ndarray) -> np.ndarray:
    """``array`` if it has the shape and dtype of the input ``node``, else BadInput."""
    array = np.asarray(array)
    want = node.type
    if tuple(array.shape) != want.shape or array.dtype != want.storage:
        raise BadInput(
            f"input '{node.name}' is {array.dtype}{list(array.shape)}, "
            f"the graph wants {want.storage}{list(want.shape)}",
            help=f"pass an array of shape {list(want.shape)} and dtype {want.storage}",
        )
    return array


def constant_value(constants: Mapping[str, np.ndarray], node: Node) -> np.ndarray:
    """The logical array of a constant node: unpacked where its type has a layout."""
    array = constants[str(node["digest"])]
    if node.type.layout is None:
        return array
    return unpack(node.type.layout, array, node.type.shape).astype(node.type.storage)


def _evaluate(
    graph: Graph,
    node: Node,
    values: Mapping[Node, Any],
    given: Mapping[Node, np.ndarray],
    precision: str | None,
) -> Any:
    if node.op == "input":
        return _widen(given[node], node.type, precision)
    if node.op == "constant":
        return _widen(constant_value(graph.constants, node), node.type, precision)
    if node.op == "result":
        return values[node.operands[0]][int(node["index"])]
    entry = OPS[node.op]
    with np.errstate(all="ignore"):
        outcome = entry.meaning(*(values[operand] for operand in node.operands), **node.attributes)
    if len(node.types) == 1:
        return _checked(node, node.type, outcome, precision)
    return tuple(
        _checked(node, type, part, precision)
        for type, part in zip(node.types, outcome, strict=True)
    )


def _widen(array: np.ndarray, type: Type, precision: str | None) -> np.ndarray:
    return array.astype(np.float64) if precision == "f64" and type.is_float else array


def _checked(node: Node, type: Type, outcome: Any, precision: str | None) -> np.ndarray:
    array = np.asarray(outcome)
    assert array.shape == type.shape, (
        f"{node.op}: its meaning gave shape {array.shape}, its shape rule {type.shape}"
    )
    if precision == "f64" and type.is_float:
        return array.astype(np.float64, copy=False)
    if type.dtype == "bf16":  # whose values are held as float32
        return cast(array, "bf16")
    return array.astype(type.storage, copy=False)
