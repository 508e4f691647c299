"""Tracing a model as if every choice of rows had chosen some.

`if rows.numel() == 0: continue` asks for a number that no export knows. Here the answer is always
"there are some": the branch for none is left out. Whether that is right is not assumed: the caller
compares the captured graph with the model, also where experts are idle (`idle.py`).

Numbers that the model reads from tensors stay tensors (`number.py`), and slices between such
numbers are rows chosen by a mask (`pieces.py`).

torch's transformers ask one more: whether a mask is the causal one, which only makes it faster.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode

from .asserted import passing_answer
from .counted import COUNTS, Counting
from .known import (
    Facts,
    Numbers,
    Places,
    Sums,
    changed,
    decided,
    difference,
    each,
    memory_of,
)
from .learn import learn, writes
from .number import (
    Array,
    Number,
    NumberUsed,
    calling_file,
    converted,
    has_number,
    stacked,
)
from .pieces import Pieces

Args = Sequence[Any]
Named = Mapping[str, Any]
_SIZED = frozenset({"empty", "full", "new_empty", "new_full", "new_ones", "new_zeros", "ones"}) | {
    "zeros"
}
_LARGEST = "make it as large as it may become, such as all chosen rows: the shape is then fixed"
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq, "__eq__": operator.eq, "ne": operator.ne, "__ne__": operator.ne,
    "gt": operator.gt, "__gt__": operator.gt, "lt": operator.lt, "__lt__": operator.lt,
    "ge": operator.ge, "__ge__": operator.ge, "le": operator.le, "__le__": operator.le,
}  # fmt: skip
# torch's name for the question whether a mask is causal, which it answers by all its elements.
_IS_CAUSAL = "_detect_is_causal_mask"
# Functions that take a number as they take a tensor without axes.
_ARITHMETIC = frozenset(
    {*_COMPARISONS, "add", "sub", "mul", "div", "true_divide", "floor_divide", "remainder", "where"}
    | {"__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__"}
    | {"__rtruediv__", "__rdiv__", "__div__", "__floordiv__", "__mod__", "__iadd__", "__isub__"}
    | {"__imul__", "add_", "sub_", "mul_", "div_", "__itruediv__", "index_put_", "index_put"}
)
_NOT_HERE = object()


class SomeRows(TorchFunctionMode):
    """While it lasts, sizes that hang on data count as positive, and so do sums over masks.

    ``least`` is what such a size is at least: 2 where PyTorch asks whether it is 1, because it
    repeats a single row where others must match. In the modules ``files``, `len` is one that
    takes tensors.
    """

    def __init__(self, least: int = 1, files: Collection[str] = ()) -> None:
        super().__init__()
        self.least = least
        self.files = files
        self.facts = Facts()
        self.unchecked: dict[str, None] = {}  # where the model checks its data, in order
        self._pieces = Pieces(self.facts)
        self._truths: dict[int, tuple[Tensor, bool]] = {}  # the tensor keeps its number alive
        self._views: dict[int, Tensor] = {}  # the memory of pieces, which are no views here
        self._positive: set[Any] = set()
        self._asked: list[Any] = []  # one for each time that it is entered, also within itself

    def __enter__(self) -> SomeRows:
        self._asked.append(getattr(transformer, _IS_CAUSAL))
        setattr(transformer, _IS_CAUSAL, lambda mask, is_causal=None, size=None: is_causal is True)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        setattr(transformer, _IS_CAUSAL, self._asked.pop())

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        named = kwargs or {}
        special = _SPECIAL.get(name)
        if special is not None:
            result = special(self, args, named)
            if result is not _NOT_HERE:
                return result
        args, named = self._without_numbers(name, args, named)
        if writes(name) and isinstance(args[0], Tensor) and memory_of(args[0]) in self._views:
            raise NumberUsed("the end of a slice that is written to", "write x[start:stop] = y")
        result = func(*args, **named)
        learn(self.facts, func, args, named, result)
        self._learn_truth(name, args, result)
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor):
                self._suppose_rows(part)
        return result

    def answer(self, x: Tensor) -> bool | None:
        """What Python goes on with where it asks whether one number is true, if that is known."""
        passing = self._passing()
        return self.truth(x) if passing is None else passing

    def _passing(self) -> bool | None:
        answer, where = passing_answer() or (None, "")
        if where:
            self.unchecked.setdefault(where)
        return answer

    def truth(self, x: Tensor) -> bool | None:
        """Whether one number is true (not 0) wherever rows were chosen, as far as is known."""
        if id(x) in self._truths:
            return self._truths[id(x)][1]
        sums = self.facts.sums(x)
        return None if sums is None or x.numel() != 1 else decided(operator.ne, sums.range())

    def _learn_truth(self, name: str, args: Args, result: Any) -> None:
        if not isinstance(result, Tensor) or result.dtype != torch.bool or result.numel() != 1:
            return
        answer = None
        if name == "any" and len(args) == 1:
            answer = True
        elif name in ("logical_not", "__invert__", "bitwise_not"):
            inner = self.truth(args[0])
            answer = None if inner is None else not inner
        elif name in _COMPARISONS:
            a, b = (self.facts.sums(x) for x in args)
            if a is not None and b is not None and a.is_one and b.is_one:
                answer = decided(_COMPARISONS[name], difference(a, b))
        if answer is not None:
            self._truths[id(result)] = result, answer

    def _without_numbers(self, name: str, args: Args, named: Named) -> tuple[Any, Any]:
        """The arguments with tensors in place of arrays and of numbers."""

        def unwrapped(x: Any) -> Any:
            if isinstance(x, Number) and name not in _ARITHMETIC:
                advice = _LARGEST if name in _SIZED else "keep it a tensor"
                raise NumberUsed(f"an argument of '{name}'", advice)
            return x.tensor if isinstance(x, Number | Array) else x

        given, by_name = changed((tuple(args), dict(named)), unwrapped)
        return given, by_name

    def _suppose_rows(self, x: Tensor) -> None:
        for size in x.shape:
            if isinstance(size, SymInt) and str(size) not in self._positive:
                self._positive.add(str(size))
                torch._check(size >= self.least)

    # What Python reads from tensors.

    def _item(self, args: Args, _: Named) -> Any:
        x = args[0]
        if id(x) in self._truths and passing_answer() is None:
            return self._truths[id(x)][1]
        sums = self.facts.sums(x)
        if sums is not None and sums.value is not None:
            return sums.value.item()
        with self:
            return Number(x.reshape(()) if x.dim() else x, self)

    def _tolist(self, args: Args, _: Named) -> Any:
        return self.as_list(args[0])

    def as_list(self, x: Tensor) -> Any:
        """What ``x.tolist()`` gives: numbers in lists, or an array as long as data tells."""
        x = self._all_places(x)
        if x.dim() == 1 and not isinstance(x.shape[0], int):
            return Array(x)
        if not all(isinstance(size, int) for size in x.shape):
            raise NumberUsed("the length of a list", "loop over all experts")
        with self:
            return [x[place].tolist() for place in range(x.shape[0])] if x.dim() else x.item()

    def _iter(self, args: Args, _: Named) -> Any:
        x = args[0]
        if self.facts[x] is None or not isinstance(x.shape[0], int):
            return _NOT_HERE
        with self:
            return iter([x[place] for place in range(x.shape[0])])

    def _all_places(self, x: Tensor) -> Tensor:
        """All experts in place of those that have tokens: the others have no rows."""
        known = self.facts[x]
        if not isinstance(known, Places):
            return x
        with self:
            return torch.arange(known.classes).reshape(known.classes, *x.shape[1:])

    def _unbind(self, args: Args, named: Named) -> Any:
        """What a loop over a tensor takes."""
        x = self._all_places(args[0])
        if x is args[0] or named.get("dim", args[1] if len(args) > 1 else 0) != 0:
            return _NOT_HERE
        with self:
            return x.unbind()

    def _bool(self, args: Args, _: Named) -> Any:
        answer = self.answer(args[0])
        return _NOT_HERE if answer is None else answer

    def _assert(self, args: Args, named: Named) -> Any:
        return None if isinstance(args[0], Tensor) else _NOT_HERE

    def _are_equal(self, args: Args, named: Named) -> Any:
        answer = self._passing()
        return _NOT_HERE if answer is None else answer

    def _index(self, args: Args, _: Named) -> Any:
        sums = self.facts.sums(args[0])
        value = None if sums is None else sums.value
        return _NOT_HERE if value is None else int(value)

    def _int(self, args: Args, named: Named) -> Any:
        known = self._index(args, named)
        if known is _NOT_HERE:
            raise converted("int")
        return known

    def _float(self, args: Args, named: Named) -> Any:
        raise converted("float")

    def _len(self, args: Args, _: Named) -> Any:
        if not isinstance(args[0].shape[0], SymInt):
            return _NOT_HERE
        if calling_file() not in self.files:
            raise converted("length")
        return 1  # PyTorch's own code wants a number here; one that it compares with 0

    def _tensor(self, args: Args, named: Named) -> Any:
        """A tensor of numbers."""
        found: list[bool] = []
        each(args, lambda x: found.append(isinstance(x, Number)))
        if not any(found):
            return _NOT_HERE
        with self:
            x = stacked(args[0])
            return x.to(named["dtype"]) if named.get("dtype") is not None else x

    # Rows between numbers.

    def _getitem(self, args: Args, _: Named) -> Any:
        x, index = args
        first, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(first, Number):
            one = self.row(x, 0, first)
            with self:
                return one[tuple(rest)] if rest else one
        if not isinstance(first, slice) or not has_number(first):
            return _NOT_HERE
        if first.step not in (None, 1):
            return _NOT_HERE
        with self:
            part = self._piece(x, first.start, first.stop)
            return part[(slice(None), *rest)] if rest else part

    def _check_place(self, number: Number, size: Any) -> None:
        """Refused if a number may be below 0 or beyond a size, which Python takes otherwise."""
        known = self.facts[number.tensor]
        below = isinstance(known, Numbers) and isinstance(size, int) and known.bound <= size
        if not below and not (isinstance(known, Sums) and known.is_natural()):
            raise NumberUsed(
                "the place of a row, and may be any number",
                "index with what topk or argmax chose, as it is",
            )

    def row(self, x: Tensor, axis: int, number: Number) -> Tensor:
        """What stands at a place along an axis that data tells."""
        self._check_place(number, x.shape[axis])
        with self:
            return x.index_select(axis, number.tensor.reshape(1)).squeeze(axis)

    def _select(self, args: Args, _: Named) -> Any:
        if len(args) != 3 or not isinstance(args[2], Number):
            return _NOT_HERE
        return self.row(*args)

    def _slice(self, args: Args, _: Named) -> Any:
        if not has_number(slice(*args[2:4])) or args[1] != 0 or args[4:] not in ((), (1,)):
            return _NOT_HERE
        with self:
            return self._piece(args[0], args[2], args[3])

    def _piece(self, x: Tensor, start: Any, stop: Any) -> Tensor:
        part = x[self._pieces.rows(start, stop, x.shape[0])]
        self._views[memory_of(part)] = part
        return part

    def _split(self, args: Args, named: Named) -> Any:
        x, counts = args[0], args[1] if len(args) > 1 else None
        axis = named.get("dim", args[2] if len(args) > 2 else 0)
        if isinstance(counts, Array):
            raise NumberUsed("the length of a list", "loop over all experts")
        if not isinstance(counts, list | tuple) or not has_number(counts) or axis != 0:
            return _NOT_HERE
        with self:
            places = self._pieces.starts(counts)
            pairs = pairwise(places)
            return tuple(self._piece(x, start, stop) for start, stop in pairs)

    def _tensor_split(self, args: Args, named: Named) -> Any:
        x, places = args[0], args[1] if len(args) > 1 else None
        if isinstance(places, Tensor) and self.facts.sums(places) is not None:
            places = self._tolist((places,), {})
        axis = named.get("dim", args[2] if len(args) > 2 else 0)
        if not isinstance(places, list | tuple) or not has_number(places) or axis != 0:
            return _NOT_HERE
        with self:
            pairs = pairwise([None, *places, None])
            return tuple(self._piece(x, start, stop) for start, stop in pairs)

    def _setitem(self, args: Args, _: Named) -> Any:
        x, index, value = args
        first, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(first, slice):
            first = changed(first, lambda x: Number(x, self) if isinstance(x, Tensor) else x)
        if not isinstance(first, slice) or not has_number(first) or first.step not in (None, 1):
            return _NOT_HERE
        with self:
            rows = self._pieces.rows(first.start, first.stop, x.shape[0])
            x[(rows, *rest)] = value
        return None

    def _cat(self, args: Args, named: Named) -> Any:
        parts = args[0] if args else named.get("tensors", ())
        axis = named.get("dim", named.get("axis", args[1] if len(args) > 1 else 0))
        if axis != 0 and not (parts and axis == -parts[0].dim()):
            return _NOT_HERE
        with self:
            whole = self._pieces.joined(list(parts)) if len(parts) else None
        return _NOT_HERE if whole is None else whole


_Special = Callable[[SomeRows, Args, Named], Any]
_SPECIAL: dict[str, _Special] = {
    "__bool__": SomeRows._bool,
    "__getitem__": SomeRows._getitem,
    "__float__": SomeRows._float,
    "__index__": SomeRows._index,
    "__int__": SomeRows._int,
    "__iter__": SomeRows._iter,
    "__len__": SomeRows._len,
    "__setitem__": SomeRows._setitem,
    "_assert": SomeRows._assert,
    "allclose": SomeRows._are_equal,
    "as_tensor": SomeRows._tensor,
    "cat": SomeRows._cat,
    "concat": SomeRows._cat,
    "concatenate": SomeRows._cat,
    "equal": SomeRows._are_equal,
    "item": SomeRows._item,
    "select": SomeRows._select,
    "slice": SomeRows._slice,
    "split": SomeRows._split,
    "split_with_sizes": SomeRows._split,
    "tensor": SomeRows._tensor,
    "tensor_split": SomeRows._tensor_split,
    "tolist": SomeRows._tolist,
    "unbind": SomeRows._unbind,
    "vstack": SomeRows._cat,
}


def _counting(count: Counting) -> _Special:
    def special(self: SomeRows, args: Args, named: Named) -> Any:
        with self:
            counted = count(self.facts, args, named)
        return _NOT_HERE if counted is None else counted

    return special


_SPECIAL |= {name: _counting(count) for name, count in COUNTS.items()}
