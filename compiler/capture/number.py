"""Python numbers and arrays that only data tells, while a model is traced.

`counts.tolist()`, `index[0].item()` and `index.numpy()` give these in place of ints and of NumPy
arrays. They add and multiply, by calls that are traced. Where Python must have the number itself,
to choose a branch or the length of a loop, the question goes to whoever traces, or is refused.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .known import each
from .sources import is_of_user


class NumberUsed(TypeError):
    """Python control flow needs a number that only data tells."""

    def __init__(self, what: str, advice: str = "", file: str = "") -> None:
        super().__init__(f"a number that only the data tells is used as {what}")
        self.advice = advice
        self.file = file  # the module whose `int`, `float` and `len` cannot take numbers yet


def converted(kind: str) -> NumberUsed:
    """What is raised where a file's own ``kind``, int or float, is called with a number."""
    return NumberUsed(f"a Python {kind}", "keep the value a tensor", calling_file())


def calling_file() -> str:
    """The name of the module of the user that is running."""
    frame = sys._getframe(1)
    while frame.f_back is not None and not is_of_user(frame.f_code.co_filename):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", ""))


class Answers(Protocol):
    """Who answers what Python asks about numbers."""

    def answer(self, x: Tensor) -> bool | None:
        """Whether a number of one element counts as true where Python asks, if that is known."""


class Number:
    """A number that a tensor without axes will hold."""

    __array_ufunc__ = None  # NumPy's numbers leave the arithmetic to this class

    def __init__(self, tensor: Tensor, answers: Answers) -> None:
        self.tensor = tensor
        self._answers = answers

    def _with(self, function: Callable[[Any, Any], Any], other: Any, turned: bool = False) -> Any:
        if isinstance(other, Tensor):
            return function(other, self.tensor) if turned else function(self.tensor, other)
        if not isinstance(other, Number | int | float):
            return NotImplemented
        other = other.tensor if isinstance(other, Number) else other
        result = function(other, self.tensor) if turned else function(self.tensor, other)
        return Number(result, self._answers)

    def _asked(self, function: Callable[[Any, Any], Any], other: Any) -> Any:
        if isinstance(other, Tensor):
            return function(self.tensor, other)
        if not isinstance(other, Number | int | float):
            return function is operator.ne
        other = other.tensor if isinstance(other, Number) else other
        return self._truth(function(self.tensor, other), "a condition")

    def _truth(self, x: Tensor, what: str) -> bool:
        answer = self._answers.answer(x)
        if answer is None:
            raise NumberUsed(what, "compute all cases, and select with torch.where")
        return answer

    def __add__(self, other: Any) -> Any:
        return self._with(operator.add, other)

    def __radd__(self, other: Any) -> Any:
        return self._with(operator.add, other, turned=True)

    def __sub__(self, other: Any) -> Any:
        return self._with(operator.sub, other)

    def __rsub__(self, other: Any) -> Any:
        return self._with(operator.sub, other, turned=True)

    def __mul__(self, other: Any) -> Any:
        return self._with(operator.mul, other)

    def __rmul__(self, other: Any) -> Any:
        return self._with(operator.mul, other, turned=True)

    def __truediv__(self, other: Any) -> Any:
        return self._with(operator.truediv, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._with(operator.truediv, other, turned=True)

    def __floordiv__(self, other: Any) -> Any:
        return self._with(operator.floordiv, other)

    def __mod__(self, other: Any) -> Any:
        return self._with(operator.mod, other)

    def __neg__(self) -> Number:
        return Number(-self.tensor, self._answers)

    def __eq__(self, other: object) -> Any:
        return self._asked(operator.eq, other)

    def __ne__(self, other: object) -> Any:
        return self._asked(operator.ne, other)

    def __lt__(self, other: Any) -> Any:
        return self._asked(operator.lt, other)

    def __le__(self, other: Any) -> Any:
        return self._asked(operator.le, other)

    def __gt__(self, other: Any) -> Any:
        return self._asked(operator.gt, other)

    def __ge__(self, other: Any) -> Any:
        return self._asked(operator.ge, other)

    def __bool__(self) -> bool:
        return self._truth(self.tensor != 0, "a condition")

    def __index__(self) -> int:
        raise NumberUsed("a size or the place in a list", "index a tensor: stack the list first")

    def __int__(self) -> int:
        raise converted("int")

    def __float__(self) -> float:
        raise converted("float")

    def __hash__(self) -> int:
        raise NumberUsed("a key", "index a tensor, or a ModuleList")

    def __str__(self) -> str:
        raise NumberUsed("text", "index a ModuleList, not a ModuleDict")

    def item(self) -> Number:
        """The number itself, as NumPy's numbers give it."""
        return self


class Array:
    """What stands for the NumPy array of a tensor, or for a list as long as only data tells."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def _of(self, x: Tensor) -> Any:
        return x.item() if not x.dim() else Array(x)

    @property
    def is_open(self) -> bool:
        """Whether only data tells how long it is."""
        return not isinstance(self.tensor.shape[0], int)

    def __len__(self) -> int:
        return len(self.tensor)

    def __bool__(self) -> bool:
        return self.is_open or len(self) > 0  # as if there were some

    def __iter__(self) -> Iterator[Any]:
        if self.is_open:
            raise NumberUsed("the length of a list", "compute all its rows at once, as a tensor")
        return (self[place] for place in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        return self._of(self.tensor[_unwrapped(index)])

    def __add__(self, other: Any) -> Array:
        return Array(self.tensor + _unwrapped(other))

    def __sub__(self, other: Any) -> Array:
        return Array(self.tensor - _unwrapped(other))

    def __eq__(self, other: object) -> Any:
        return Array(self.tensor == _unwrapped(other))

    __hash__ = None  # type: ignore[assignment]  # as NumPy's arrays

    def tolist(self) -> Any:
        return self.tensor.tolist()

    def cumsum(self, axis: int | None = None) -> Array:
        x = self.tensor.flatten() if axis is None else self.tensor
        return Array(x.cumsum(axis or 0))

    def sum(self, axis: Any = None) -> Any:
        return self._of(self.tensor.sum() if axis is None else self.tensor.sum(axis))

    def reshape(self, *shape: Any) -> Array:
        return Array(self.tensor.reshape(*shape))

    def flatten(self) -> Array:
        return Array(self.tensor.flatten())

    ravel = flatten

    def nonzero(self) -> tuple[Array, ...]:
        return tuple(Array(x) for x in self.tensor.nonzero(as_tuple=True))

    def astype(self, dtype: Any) -> Array:
        if not str(getattr(dtype, "__name__", dtype)).startswith("int"):
            raise NumberUsed(f"an array of {dtype}", "stay with PyTorch's tensors")
        return self

    def __getattr__(self, name: str) -> Any:
        raise NumberUsed(f"a NumPy array ('{name}')", "stay with PyTorch's tensors")

    def __array_function__(
        self, function: Any, types: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        known = _OF_NUMPY.get(function.__name__)
        if known is None:
            raise NumberUsed(f"an array for numpy.{function.__name__}", "use PyTorch's functions")
        return known(*args, **kwargs)

    def __array_ufunc__(self, function: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        known = {"add": operator.add, "subtract": operator.sub, "equal": operator.eq}
        if function.__name__ not in known or method != "__call__" or kwargs:
            raise NumberUsed(f"an array for numpy.{function.__name__}", "use PyTorch's functions")
        return Array(known[function.__name__](*(_unwrapped(x) for x in args)))


def _unwrapped(value: Any) -> Any:
    """Tensors in place of arrays and of numbers."""
    if isinstance(value, tuple):
        return tuple(_unwrapped(part) for part in value)
    return value.tensor if isinstance(value, Array) else value


def _bincount(x: Array, weights: Any = None, minlength: int = 0) -> Array:
    if weights is not None:
        raise NumberUsed("weights of numpy.bincount", "use index_add on zeros")
    return Array(torch.bincount(x.tensor, minlength=minlength))


def _concatenate(parts: Sequence[Any], axis: int = 0) -> Array:
    return Array(torch.cat([torch.as_tensor(_unwrapped(part)) for part in parts], axis))


_OF_NUMPY: dict[str, Callable[..., Any]] = {
    "bincount": _bincount,
    "concatenate": _concatenate,
    "cumsum": lambda x, axis=None: x.cumsum(axis),
    "sum": lambda x, axis=None: x.sum(axis),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: x.nonzero(),
    "unique": lambda x: torch.unique(x.tensor),
}


def has_number(value: Any) -> bool:
    """Whether such a number is anywhere in nested arguments."""
    found: list[bool] = []
    each(value, lambda x: found.append(isinstance(x, Number)))
    return any(found)


def stacked(value: Any) -> Tensor:
    """A tensor of what stands in nested lists of numbers."""
    if isinstance(value, list | tuple):
        return torch.stack([stacked(part) for part in value])
    return value.tensor if isinstance(value, Number) else torch.as_tensor(value)
