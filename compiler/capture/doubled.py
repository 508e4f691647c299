"""A model run in double precision, whatever precision it asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}
_WIDENING = {torch.Tensor.float: torch.Tensor.double}


class Doubled(TorchFunctionMode):
    """While it lasts, PyTorch computes with doubles in place of floats.

    What is half as wide stays so. The same wide tensor stands for a float one each time, so that
    views of it share memory and see what is written; the float one is not written to.
    """

    def __init__(self) -> None:
        super().__init__()
        self._twins: dict[int, tuple[Tensor, Tensor]] = {}  # the first keeps its number alive

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        wide_args, wide_named = tree_map(self._wide, (args, kwargs or {}))
        return tree_map(self._wide, _WIDENING.get(func, func)(*wide_args, **wide_named))

    def _wide(self, x: Any) -> Any:
        if isinstance(x, torch.dtype):
            return _WIDE.get(x, x)
        if not isinstance(x, Tensor) or x.dtype not in _WIDE:
            return x
        if id(x) not in self._twins:
            self._twins[id(x)] = x, x.detach().to(_WIDE[x.dtype])
        return self._twins[id(x)][1]
