"""What torch.export knows of values: dtypes, shapes, and sizes that it could not name."""

from __future__ import annotations

from typing import Any

import torch
from torch import SymInt, Tensor

from ..ir.graph import Node
from ..ir.types import Type
from .chosen import Chosen
from .refusals import MASK_ADVICE
from .refused import Refused

DTYPES = {
    torch.bool: "bool",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f32",  # what hangs on data is computed in float32, and compared with the model
}
UNKNOWN = object()  # the value of a call that was refused, and of what reads it
_DROPPED = frozenset({"device", "layout", "memory_format", "pin_memory"})


def as_float32(x: Tensor) -> Tensor:
    """``x`` in float32, where what is finite stays finite: a mask may hold float64's largest."""
    if x.dtype != torch.float64:
        return x.float()
    limit = torch.finfo(torch.float32).max
    return torch.where(x.isfinite(), x.clamp(-limit, limit), x).float()


class Sizes:
    """Sizes that torch.export left open.

    The number of true elements of a constant mask is known once it was computed. That of a mask
    which hangs on data stands for all its elements, chosen or not: such a size is `padded`.
    """

    def __init__(self) -> None:
        self._known: dict[Any, int] = {}
        self._padded: set[Any] = set()
        self._masks: dict[Any, Node] = {}

    def learn(self, fake: Any, value: Any) -> None:
        """Notes the sizes of ``fake`` that ``value`` tells."""
        if isinstance(fake, tuple | list):
            for part, real in zip(fake, value, strict=True):
                self.learn(part, real)
        elif isinstance(fake, Tensor) and isinstance(value, Tensor):
            for size, number in zip(fake.shape, value.shape, strict=True):
                self.learn(size, number)
        elif isinstance(fake, SymInt) and isinstance(value, int):
            self._known[fake.node.expr] = value

    def pad(self, fake: Any, type: Type, mark: Chosen) -> None:
        """Notes the sizes of ``fake`` that are not known as those of ``type``, whose mark it is."""
        for axis, (size, number) in enumerate(zip(fake.shape, type.shape, strict=True)):
            if not isinstance(size, SymInt):
                continue
            if axis == mark.axis:
                self._masks.setdefault(size.node.expr, mark.mask)
            if size.node.expr.is_Symbol:
                known = self._known.setdefault(size.node.expr, number)
                assert known == number, f"{size} stands for {known} rows and for {number}"
                self._padded.add(size.node.expr)

    def is_padded(self, size: Any) -> bool:
        """Whether ``size`` counts rows that were not chosen, too."""
        return isinstance(size, SymInt) and not self._padded.isdisjoint(size.node.expr.free_symbols)

    def padded(self, fake: Any) -> list[int]:
        """The axes of ``fake`` that count rows that were not chosen, too."""
        return [axis for axis, size in enumerate(fake.shape) if self.is_padded(size)]

    def chosen(self, fake: Any) -> Chosen | None:
        """The axis of ``fake`` that is padded, and the mask of the rows that count there.

        None where no axis is; Refused where it is not known which rows count.
        """
        axes = self.padded(fake)
        if not axes:
            return None
        mask = self._masks.get(fake.shape[axes[0]].node.expr)
        if len(axes) > 1 or mask is None:
            raise Refused("rows chosen by the data in a form that is not followed", MASK_ADVICE)
        return Chosen(axes[0], mask)

    def number(self, size: Any) -> int | None:
        """``size`` as a number, if it is one and is known."""
        if not isinstance(size, SymInt):
            return int(size) if isinstance(size, int) else None
        known = size.node.expr.subs(self._known)
        return int(known) if known.is_number else None

    def type_of(self, fake: Any) -> Type | None:
        """The type of a tensor of the exported program, or of each part of a complex one.

        None where its shape is not fixed; Refused where the graph has no such dtype.
        """
        if not isinstance(fake, Tensor):
            return None
        if fake.dtype.to_real() not in DTYPES:
            raise Refused(f"a tensor of {fake.dtype}", "compute in float32, or in integers")
        shape = [self.number(size) for size in fake.shape]
        fixed = tuple(size for size in shape if size is not None)
        return Type(DTYPES[fake.dtype.to_real()], fixed) if len(fixed) == len(shape) else None

    def types_of(self, fake: Any) -> Any:
        """The type of a result, or of each of several."""
        if isinstance(fake, tuple | list):
            return tuple(self.type_of(part) for part in fake)
        return self.type_of(fake)


def plain(value: Any) -> Any:
    """Arguments of an fx call as lowerings take them: IR names of dtypes, lists of parts."""
    if isinstance(value, torch.dtype):
        return DTYPES.get(value, str(value))
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items() if key not in _DROPPED}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def contains_unknown(value: Any) -> bool:
    """Whether an argument hangs on a call that was refused."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(contains_unknown(part) for part in value)
    return value is UNKNOWN
