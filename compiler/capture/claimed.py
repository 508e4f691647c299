"""Claims in a captured graph: which values are said to be results of Butterfly layers.

The graph's notes hold each claim, ``claim.KEY = (what, source)``; a node's note ``claims`` lists
the keys that name it. A claim that names several nodes is about one of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..ir.graph import Attribute, Node, topological_order
from .claims import is_registered
from .sources import clean, source_of

if TYPE_CHECKING:
    from torch import fx

CLAIM = "claim."
_OF_THE_TEXT_FORM = re.compile(r"[{}#@]+")


@dataclass
class Claims:
    """The claims met on a walk, and the nodes that they name."""

    claims: dict[str, tuple[str, str]] = field(default_factory=dict)
    named: dict[Node, tuple[str, ...]] = field(default_factory=dict)

    def add(self, key: str, what: str, source: str, node: Node) -> None:
        self.claims.setdefault(key, (what, source))
        self.named[node] = (*self.named.get(node, ()), key)

    @property
    def notes(self) -> Mapping[str, Attribute]:
        """The notes of a graph that makes these claims."""
        return {f"{CLAIM}{key}": claim for key, claim in self.claims.items()}

    def noted(
        self, inputs: tuple[Node, ...], outputs: tuple[Node, ...]
    ) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
        """The ends of the graph in which each named node has its note."""
        if not self.named:
            return inputs, outputs
        new: dict[Node, Node] = {}
        for node in topological_order(outputs, inputs):
            operands = tuple(new[operand] for operand in node.operands)
            changed = replace(node, operands=operands) if operands != node.operands else node
            keys = self.named.get(node)
            new[node] = changed.with_notes(claims=keys) if keys else changed
        return tuple(new[node] for node in inputs), tuple(new[node] for node in outputs)


def what_is_marked(label: str) -> str:
    """A mark in words; the label without what the text form of the IR is made of."""
    label = _OF_THE_TEXT_FORM.sub("_", " ".join(label.split()))
    return f"mark '{label}'" if label else "mark"


def results_of_registered(graph: fx.Graph) -> Iterator[tuple[str, str, str, fx.Node]]:
    """Key, words, source line and value: what calls of registered modules hand to the outside.

    A module that returns several floating-point tensors gives several values under one key.
    """
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or not getattr(value, "is_floating_point", bool)():
            continue
        stack = _calls(node)
        for call, (path, kind) in stack.items():
            if is_registered(kind) and any(call not in _calls(user) for user in node.users):
                place = f"'{path}'" if path else "the model itself"
                again = call.rpartition("@")[2] if "@" in call else ""
                times = f", call {int(again) + 1}" if again.isdigit() else ""
                what = f"class {kind.rpartition('.')[2]}, {place}{times}"
                key = f"class.{clean(path)}" + (f".{again}" if times else "")
                yield key, what, source_of(node), node


def _calls(node: fx.Node) -> dict[str, tuple[str, str]]:
    """The calls of modules in which ``node`` was made: path and class name of each, by its key."""
    found = node.meta.get("nn_module_stack") or {}
    return {key: (path, _name(kind)) for key, (path, kind) in found.items()}


def _name(kind: str | type) -> str:
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
