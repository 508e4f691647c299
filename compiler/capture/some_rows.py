"""Tracing a model as if every choice of rows had chosen some.

`if rows.numel() == 0: continue` asks for a number that no export knows. Here the answer is always
"there are some": the branch for none is left out. Whether that is right is not assumed: the caller
compares the captured graph with the model, also where experts are idle (`idle.py`).

torch's transformers ask one more: whether a mask is the causal one, which only makes it faster.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode

Counts = tuple[float, float]  # what a number is if one element was chosen, and if all were
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq, "__eq__": operator.eq, "ne": operator.ne, "__ne__": operator.ne,
    "gt": operator.gt, "__gt__": operator.gt, "lt": operator.lt, "__lt__": operator.lt,
    "ge": operator.ge, "__ge__": operator.ge, "le": operator.le, "__le__": operator.le,
}  # fmt: skip
# torch's name for the question whether a mask is causal, which it answers by all its elements.
_IS_CAUSAL = "_detect_is_causal_mask"
_READS = frozenset({"__bool__", "__int__", "__index__", "item"})


class SomeRows(TorchFunctionMode):
    """While it lasts, sizes that hang on data count as positive, and so do sums over masks."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[int, tuple[Tensor, Counts]] = {}  # the tensor keeps its number alive
        self._positive: set[Any] = set()
        self.answers = 0  # how many questions were answered

    def __enter__(self) -> SomeRows:
        self._asked = getattr(transformer, _IS_CAUSAL)
        setattr(transformer, _IS_CAUSAL, lambda mask, is_causal=None, size=None: is_causal is True)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        setattr(transformer, _IS_CAUSAL, self._asked)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _READS:
            counts = self._of(args[0])
            if counts is not None and bool(counts[0]) == bool(counts[1]):
                self.answers += 1
                return bool(counts[0]) if name in ("__bool__", "item") else 1
        if name == "__len__" and isinstance(args[0].shape[0], SymInt):
            self.answers += 1
            return 1  # Python wants a number here; one that is compared with 0
        result = func(*args, **(kwargs or {}))
        counts = self._followed(name, args)
        if counts is not None and isinstance(result, Tensor) and result.numel() == 1:
            self._counts[id(result)] = result, counts
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor):
                self._suppose_rows(part)
        return result

    def _of(self, x: Any) -> Counts | None:
        return self._counts[id(x)][1] if id(x) in self._counts else None

    def _followed(self, name: str, args: tuple[Any, ...]) -> Counts | None:
        """What is known of the result of a call on ``args``."""
        if not args or not isinstance(args[0], Tensor):
            return None
        x = args[0]
        if name == "any" and len(args) == 1:
            return 1, 1
        if name in ("sum", "count_nonzero") and x.dtype == torch.bool and len(args) == 1:
            return 1, float("inf")
        counts = self._of(x)
        if counts is None:
            return None
        if name in _COMPARISONS and isinstance(args[1], int | float):
            compare = _COMPARISONS[name]
            return compare(counts[0], args[1]), compare(counts[1], args[1])
        if name in ("logical_not", "__invert__", "bitwise_not"):
            return not counts[0], not counts[1]
        return None

    def _suppose_rows(self, x: Tensor) -> None:
        for size in x.shape:
            if isinstance(size, SymInt) and str(size) not in self._positive:
                self._positive.add(str(size))
                self.answers += 1
                torch._check(size > 0)
