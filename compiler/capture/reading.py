"""What Python does with numbers that only data tells, by other means than PyTorch's calls.

`int(x)` must give an int, and a list of modules wants one as its index. While a model is traced,
`int` and `float` in the files of its modules give a `Number`, `len` a size that is open, and a
ModuleList at such a number computes all its modules and selects by it.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils import _pytree as pytree

from .known import Numbers
from .number import Array, Number, NumberUsed
from .some_rows import SomeRows


@contextmanager
def reading_numbers(mode: SomeRows, names: set[str]) -> Iterator[None]:
    """While it lasts, the files of ``names`` may convert numbers, all may index lists by them."""
    files = [sys.modules[name] for name in sorted(names) if name in sys.modules]
    with ExitStack() as stack:
        for file in files:
            for kind in (_Int, _Float):
                name = kind.__name__.strip("_").lower()
                if name not in vars(file):
                    stack.enter_context(patch.object(file, name, kind, create=True))
            if "len" not in vars(file):
                stack.enter_context(patch.object(file, "len", _len, create=True))
        stack.enter_context(patch.object(Tensor, "numpy", _numpy(Tensor.numpy)))
        stack.enter_context(patch.object(torch, "from_numpy", _from_numpy(torch.from_numpy)))
        for fake in (FakeTensor, FunctionalTensor):  # their own methods ask no mode
            stack.enter_context(patch.object(fake, "tolist", lambda x: mode.as_list(x)))
        stack.enter_context(patch.object(torch, "select", _select(torch.select, mode)))
        for lists in (nn.ModuleList, nn.ParameterList):
            before = lists.__getitem__
            stack.enter_context(patch.object(lists, "__getitem__", _getitem(before, mode)))
        yield


class _LikeBuiltin(type):
    """Classes that take the place of a builtin one."""

    builtin: type

    def __instancecheck__(cls, x: Any) -> bool:
        return isinstance(x, cls.builtin)

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, cls.builtin)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if len(args) == 1 else None
        if isinstance(x, Tensor):
            x = x.item()
        if not isinstance(x, Number):
            return cls.builtin(*((x,) if len(args) == 1 else args), **kwargs)
        if x.tensor.is_floating_point() != (cls.builtin is float):
            raise NumberUsed("a rounded number", "round the tensor: x.long(), x.float()")
        return x


class _Int(int, metaclass=_LikeBuiltin):
    builtin = builtins.int


class _Float(float, metaclass=_LikeBuiltin):
    builtin = builtins.float


def _len(x: Any) -> Any:
    """The length of a tensor, or of a list, that only data tells, as torch.export writes it."""
    x = x.tensor if isinstance(x, Array) else x
    return x.shape[0] if isinstance(x, Tensor) and x.dim() else builtins.len(x)


def _numpy(before: Any) -> Any:
    def numpy(self: Tensor, **options: Any) -> Any:
        return (
            Array(self)
            if isinstance(self, FakeTensor | FunctionalTensor)
            else before(self, **options)
        )

    return numpy


def _from_numpy(before: Any) -> Any:
    def from_numpy(x: Any) -> Tensor:
        return x.tensor if isinstance(x, Array) else before(x)

    return from_numpy


def _select(before: Any, mode: SomeRows) -> Any:
    # torch.export writes x[number] so; its own parser takes no Number.
    def select(*args: Any, **named: Any) -> Any:
        if len(args) == 3 and isinstance(args[2], Number):
            return mode.row(*args)
        return before(*args, **named)

    return select


def _getitem(before: Any, mode: SomeRows) -> Any:
    def getitem(self: Any, index: Any) -> Any:
        if isinstance(index, Tensor):
            index = index.item()
        if not isinstance(index, Number):
            return before(self, index)
        known = mode.facts[index.tensor]
        if not isinstance(known, Numbers) or known.bound > len(self):
            raise NumberUsed(
                "the place in a list, and may be any number",
                "index with what topk or argmax chose, as it is",
            )
        return _which([before(self, place) for place in range(len(self))], index.tensor)

    return getitem


def _which(values: Sequence[Any], number: Tensor) -> Any:
    """The one of ``values`` at a place that data tells."""
    first = values[0]
    if isinstance(first, Tensor):
        if any(x.shape != first.shape or x.dtype != first.dtype for x in values):
            raise NumberUsed("the place in a list of unlike tensors", "give all one shape")
        chosen = first
        for place, x in enumerate(values[1:], 1):
            chosen = torch.where(number == place, x, chosen)
        return chosen
    if isinstance(first, nn.Module) or callable(first):
        return Which(values, number)
    if all(type(x) is type(first) and x == first for x in values):
        return first
    raise NumberUsed("the place in a list", "give all of the list the same settings")


class Which:
    """One of several modules, or of their methods, by a number that data tells."""

    def __init__(self, values: Sequence[Any], number: Tensor) -> None:
        self._values, self._number = values, number

    def __getattr__(self, name: str) -> Any:
        return _which([getattr(value, name) for value in self._values], self._number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        results = [pytree.tree_flatten(value(*args, **kwargs)) for value in self._values]
        columns = zip(*(leaves for leaves, _ in results), strict=True)
        chosen = [_which(leaves, self._number) for leaves in columns]
        return pytree.tree_unflatten(chosen, results[0][1])
