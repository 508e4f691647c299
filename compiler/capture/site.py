"""Where one ATen call is lowered, and the table of all lowerings.

A family of calls is one file, `aten_<family>.py`. A lowering takes the site and the arguments of
the call: tensors as IR nodes, dtypes as their IR names, all else as Python has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from ..ir.build import make, result
from ..ir.graph import Node, constant, topological_order
from ..ir.types import FLOATS, STORAGE, Type
from .chosen import Chosen, Marks
from .refused import Refused, accept

__all__ = [
    "LOWERINGS",
    "Constants",
    "Refused",
    "Site",
    "accept",
    "lowering_of",
    "lowers",
    "promoted",
]

Lowering = Callable[..., Any]
_LARGEST = float(np.finfo(np.float32).max)
_Lowering = TypeVar("_Lowering", bound=Lowering)

# By the name of the operator ("aten.add"), or of one overload of it ("aten.add.Tensor").
LOWERINGS: dict[str, Lowering] = {}


def lowers(*names: str) -> Callable[[_Lowering], _Lowering]:
    """Enters a function into the table of lowerings under ``names``."""

    def enter(function: _Lowering) -> _Lowering:
        for name in names:
            assert name not in LOWERINGS, f"{name} has two lowerings"
            LOWERINGS[name] = function
        return function

    return enter


def lowering_of(target: str) -> Lowering | None:
    """The lowering of an overload such as ``aten.add.Tensor``, or None."""
    return LOWERINGS.get(target) or LOWERINGS.get(target.rpartition(".")[0])


class Constants:
    """The constants of a graph: equal ones of the same name are one node."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._nodes: dict[tuple[str, str, Type], Node] = {}

    def hold(self, array: np.ndarray, dtype: str, name: str, source: str = "") -> Node:
        type = Type(dtype, tuple(array.shape))
        node = constant(self.arrays, np.asarray(array, order="C"), name, type)
        key = (str(node["digest"]), name, type)
        return self._nodes.setdefault(key, replace(node, source=source))

    def needed(self, outputs: Sequence[Node]) -> dict[str, np.ndarray]:
        """The arrays that some constant of the graph holds."""
        nodes = topological_order(outputs)
        digests = {str(node["digest"]) for node in nodes if node.op == "constant"}
        return {digest: self.arrays[digest] for digest in sorted(digests)}


@dataclass(frozen=True)
class Site:
    """One call: makes IR nodes that carry its name and source line.

    ``target`` is the overload that is called (``aten.add.Tensor``), ``out`` the type of its result,
    or a tuple of types where it has several. ``marks`` tells which of the values hold rows that the
    data chose.
    """

    target: str
    name: str
    source: str
    out: Any
    constants: Constants
    marks: Marks = field(default_factory=Marks)

    @property
    def operator(self) -> str:
        """The bare name of the operator: ``add`` for ``aten.add.Tensor``."""
        return self.target.split(".")[1]

    def make(self, op: str, *operands: Node, **attributes: Any) -> Node:
        operands = self.marks.closed(op, operands, attributes, self.filled)
        node = make(op, *operands, name=self.name, source=self.source, **attributes)
        self.marks.follow(node)
        return node

    def results(self, op: str, *operands: Node, **attributes: Any) -> tuple[Node, ...]:
        """Every result of an op that has several."""
        node = self.make(op, *operands, **attributes)
        parts = tuple(result(node, index) for index in range(len(node.types)))
        for part in parts:
            self.marks.follow(part)
        return parts

    def constant(self, value: Any, dtype: str, name: str = "") -> Node:
        """A constant that the call itself brings: a scalar, an order of elements."""
        array = np.asarray(value)
        if dtype == "f32" and np.isfinite(array).all():
            array = array.clip(-_LARGEST, _LARGEST)  # float64's largest number stands for any
        array = array.astype(STORAGE[dtype])
        if not name and array.ndim == 0:
            return self.constants.hold(array, dtype, "scalar")
        return self.constants.hold(array, dtype, name or f"{self.name}.constant", self.source)

    def held(self, x: Node) -> np.ndarray | None:
        """The array of ``x`` where it is a constant, also one of candidate rows."""
        return self.constants.arrays[str(x["digest"])] if x.op == "constant" else None

    def value(self, x: Node) -> np.ndarray | None:
        """The array of ``x`` where it is a constant whose rows all count."""
        return None if x in self.marks else self.held(x)

    def choose(self, x: Node, axis: int, mask: Node) -> Node:
        """``x`` with candidate rows along ``axis``, of which those count where ``mask`` holds.

        Raises Refused where the mask has candidates itself: places among chosen rows are unknown.
        """
        advice = "choose once, by one mask: torch.logical_and(first, second)"
        accept(mask not in self.marks, "rows chosen among rows that the data chose", advice)
        if x.op == "constant":
            x = replace(x)  # equal constants are one node, but masks may differ
        self.marks[x] = Chosen(axis, self.reshape(mask, (mask.type.size,)))
        return x

    def filled(self, x: Node) -> Node:
        """``x`` with zeros in the rows that were not chosen."""
        zero = self.constant(0, x.type.dtype)
        return self.merge(self.marks[x], x, zero) if x in self.marks else x

    def merge(self, mark: Chosen, x: Node, other: Node) -> Node:
        """The rows of ``x`` that were chosen, those of ``other`` elsewhere: all of them count."""
        shape = [1] * x.type.rank
        shape[mark.axis] = mark.mask.type.size
        mask = self.reshape(mark.mask, shape)
        return make("where", mask, x, other, name=self.name, source=self.source)

    # Forms that do nothing where there is nothing to do.

    def tensor(self, x: Any, dtype: str) -> Node:
        """A tensor or a Python scalar in ``dtype``."""
        return self.cast(x, dtype) if isinstance(x, Node) else self.constant(x, dtype)

    def cast(self, x: Node, dtype: str) -> Node:
        return x if x.type.dtype == dtype else self.make("cast", x, dtype=dtype)

    def reshape(self, x: Node, shape: Sequence[int]) -> Node:
        """``x`` in another shape; a constant stays a constant, under its name."""
        if x.type.shape == tuple(shape):
            return x
        value = self.held(x)
        if value is not None and x not in self.marks:
            return self.constants.hold(value.reshape(shape), x.type.dtype, x.name, x.source)
        node = self.make("reshape", x, shape=tuple(shape))
        return node if value is None else self._numbered(node, value.reshape(shape))

    def _numbered(self, node: Node, value: np.ndarray) -> Node:
        """Numbers of candidate rows in another form: a constant with the marks of ``node``."""
        if node not in self.marks:
            return node
        name = f"{self.name}.places"
        held = replace(self.constants.hold(value, node.type.dtype, name, self.source))
        self.marks[held] = self.marks[node]
        return held

    def transpose(self, x: Node, order: Sequence[int]) -> Node:
        order = tuple(order)
        same = order == tuple(range(x.type.rank))
        return x if same else self.make("transpose", x, order=order)

    def swap(self, x: Node, a: int, b: int) -> Node:
        """Two axes exchanged."""
        order = list(range(x.type.rank))
        order[a], order[b] = order[b], order[a]
        return self.transpose(x, order)

    def move(self, x: Node, axis: int, to: int) -> Node:
        """One axis moved to another place, the others in order."""
        order = list(range(x.type.rank))
        axis, to = axis % x.type.rank, to % x.type.rank
        order.insert(to, order.pop(axis))
        return self.transpose(x, order)

    def broadcast(self, x: Node, shape: Sequence[int]) -> Node:
        same = x.type.shape == tuple(shape)
        return x if same else self.make("broadcast", x, shape=tuple(shape))

    def slice(self, x: Node, axis: int, start: int, stop: int, step: int = 1) -> Node:
        size = x.type.shape[axis]
        whole = start == 0 and stop == size and step == 1
        if whole:
            return x
        node = self.make("slice", x, axis=axis, start=start, stop=stop, step=step)
        value = self.held(x) if x in self.marks else None
        part = (slice(None),) * axis + (slice(start, stop, step),)
        return node if value is None else self._numbered(node, value[part])

    def select(self, x: Node, axis: int, index: int) -> Node:
        """One element of an axis, which goes."""
        part = self.slice(x, axis, index, index + 1)
        shape = x.type.shape
        return self.reshape(part, shape[:axis] + shape[axis + 1 :])

    def concat(self, parts: Sequence[Node], axis: int) -> Node:
        parts = [part for part in parts if part.type.shape[axis]] or list(parts[:1])
        return parts[0] if len(parts) == 1 else self.make("concat", *parts, axis=axis)

    def sum(self, x: Node, axes: Sequence[int], keep: bool = False) -> Node:
        return self.make("sum", x, axes=tuple(axes), keep=keep) if axes else x


def promoted(a: Any, b: Any) -> str:
    """The dtype in which torch computes ``a`` with ``b``, each an IR node or a Python scalar.

    Tensors with axes come before tensors without, and these before Python scalars: the lower
    counts only where it is of a higher kind (bool, integer, float).
    """
    parts = sorted((_rank_and_dtype(x) for x in (a, b)), reverse=True)
    (rank, high), (lower_rank, low) = parts
    if rank == lower_rank:
        return _wider(high, low)
    if high in FLOATS:
        return high
    return _wider(high, low) if high == "bool" or low in FLOATS else high


def _rank_and_dtype(x: Any) -> tuple[int, str]:
    if isinstance(x, Node):
        return (2 if x.type.rank else 1), x.type.dtype
    if isinstance(x, bool):
        return 0, "bool"
    return 0, "i64" if isinstance(x, int) else "f32"


def _wider(a: str, b: str) -> str:
    """torch.promote_types."""
    if a == b:
        return a
    floats = {a, b} & FLOATS
    if len(floats) == 1:
        return floats.pop()
    if floats == {"f16", "bf16"}:
        return "f32"
    return str(_NAMES[np.promote_types(STORAGE[a], STORAGE[b])])


_NAMES = {STORAGE[name]: name for name in STORAGE if name not in ("bf16", "ternary")}
