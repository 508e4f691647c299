"""Compiled models inside PyTorch: one custom op, which torch.compile keeps whole."""

from __future__ import annotations

from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch

from .compiler.run.torch_types import TORCH
from .program import Program

# By what an op is told: it takes tensors and numbers only.
_programs: WeakValueDictionary[int, Program] = WeakValueDictionary()
_numbers = count()


@torch.library.custom_op("butterflyc::call", mutates_args=())
def call(inputs: list[torch.Tensor], program: int) -> list[torch.Tensor]:
    """The outputs of a compiled model, on the device of its first input."""
    found = _programs[program](*inputs)
    return list(found) if isinstance(found, tuple) else [found]


@call.register_fake
def _(inputs: list[torch.Tensor], program: int) -> list[torch.Tensor]:
    """Outputs of the right shapes: of as many batches as the inputs have."""
    own = _programs[program]
    first, given = own.inputs[0].shape, inputs[0].shape
    batches = given[0] // first[0] if first else 1
    return [
        torch.empty(
            [batches * y.shape[0], *y.shape[1:]] if y.shape and own.manifest["splits"] else y.shape,
            dtype=TORCH[y.dtype],
            device=inputs[0].device,
        )
        for y in own.outputs
    ]


class CompiledModule(torch.nn.Module):
    """A compiled model as a module: ``module(*tensors)`` is ``program(*tensors)``.

    It has no parameters, and no gradient goes through it.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program, self._number = program, next(_numbers)
        _programs[self._number] = program

    def forward(self, *inputs: torch.Tensor) -> Any:
        found = call(list(inputs), self._number)
        return found[0] if len(found) == 1 else tuple(found)
