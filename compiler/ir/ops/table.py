"""What an op is: operands, attributes, the rule for its result type, its meaning in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..types import Type

REQUIRED: Any = object()


@dataclass(frozen=True)
class Op:
    """One line of an op table.

    ``operands`` names them: ``"x w bias?"`` (``?`` may be missing; ``...`` any number).
    ``result(*types, **attributes)`` gives the result type, or several, or raises ValueError.
    ``meaning(*arrays, **attributes)`` computes the op; it *defines* it, at any float precision.
    """

    name: str
    operands: str
    result: Callable[..., Type | tuple[Type, ...]]
    meaning: Callable[..., Any]
    attributes: Mapping[str, Any]
    doc: str

    @property
    def names(self) -> tuple[str, ...]:
        """Of the operands, without what says how many there may be."""
        return tuple(name.rstrip("?.") for name in self.operands.split())

    def check_count(self, count: int) -> None:
        """Raises ValueError if the op does not take ``count`` operands."""
        names = self.operands.split()
        needed = sum(not name.endswith(("?", "...")) for name in names)
        most = count if self.operands.endswith("...") else len(names)
        if not needed <= count <= most:
            raise ValueError(f"takes operands '{self.operands}', got {count}")

    def complete(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """``attributes`` with defaults filled in. Raises ValueError for unknown or missing ones."""
        unknown = sorted(set(attributes) - set(self.attributes))
        if unknown:
            raise ValueError(f"has no attribute '{unknown[0]}' (it has {sorted(self.attributes)})")
        full = {name: attributes.get(name, default) for name, default in self.attributes.items()}
        missing = sorted(name for name, value in full.items() if value is REQUIRED)
        if missing:
            raise ValueError(f"needs the attribute '{missing[0]}'")
        return full


def op(
    name: str,
    operands: str,
    result: Callable[..., Type | tuple[Type, ...]],
    meaning: Callable[..., Any],
    doc: str,
    **attributes: Any,
) -> Op:
    """One op. Keyword arguments are its attributes with their defaults, or REQUIRED."""
    return Op(name, operands, result, meaning, attributes, doc)


def want(condition: bool, message: str) -> None:
    """Raises ValueError with ``message`` unless ``condition``: the shape rules' check."""
    if not condition:
        raise ValueError(message)


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """NumPy's broadcast of ``shapes``. Raises ValueError where they do not fit."""
    rank = max(map(len, shapes), default=0)
    out = []
    for axis in range(1, rank + 1):
        sizes = {shape[-axis] for shape in shapes if len(shape) >= axis} - {1}
        if len(sizes) > 1:
            raise ValueError(f"shapes {', '.join(map(str, shapes))} do not broadcast")
        out.append(sizes.pop() if sizes else 1)
    return tuple(reversed(out))


def axis_of(axis: int, rank: int) -> int:
    """``axis`` counted from the front. Raises ValueError if there is no such axis."""
    want(-rank <= axis < rank, f"axis {axis} of a tensor of rank {rank}")
    return axis % rank
