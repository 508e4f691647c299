"""What a model is called with: the tensors in it are inputs, all else is fixed when it is compiled.

Inputs are in the order of the call: arguments by place, then those by name as they were given, and
in lists, tuples and dicts from front to back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import BadInput
from .fakes import DTYPES
from .structure import leaves_of

WIDE = {torch.float64: "float64", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_SETTINGS = (bool, int, float, str)


@dataclass(frozen=True)
class Arguments:
    """Arguments of forward, by place and by name."""

    places: tuple[Any, ...] = ()
    names: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Any) -> Arguments:
        """``given`` is a tuple of arguments, or a dict of them by name. Raises BadInput."""
        if isinstance(given, Arguments):
            return given
        if isinstance(given, Mapping):
            return cls((), dict(given))
        if isinstance(given, tuple):
            return cls(given)
        raise BadInput(
            f"example_inputs is a {type(given).__name__}, not a tuple",
            help="pass the arguments of forward as a tuple, (x,), or as a dict by their names",
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The inputs, in order."""
        leaves = pytree.tree_leaves((self.places, dict(self.names)))
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))

    def filled(self, inputs: Sequence[Tensor]) -> Arguments:
        """These arguments with other inputs."""
        leaves, spec = pytree.tree_flatten((self.places, dict(self.names)))
        rest = iter(inputs)
        new = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return Arguments(*pytree.tree_unflatten(new, spec))

    def copied(self) -> Arguments:
        """These arguments with copies of the inputs, for a model that may write to them."""
        return self.filled([x.detach().clone() for x in self.tensors])

    def check(self) -> None:
        """BadInput for what is neither a tensor that can be compiled for nor a plain setting."""
        for values in (self.places, dict(self.names)):
            for (first, *inner), value in leaves_of(values):
                _check(f"example input {first!r}{''.join(f'[{key!r}]' for key in inner)}", value)

    def __str__(self) -> str:
        return ", ".join(f"{x.dtype}{list(x.shape)}" for x in self.tensors)


def _check(what: str, value: Any) -> None:
    if value is None or isinstance(value, _SETTINGS):
        return
    if not isinstance(value, Tensor):
        raise BadInput(
            f"{what} is a {type(value).__name__}, not a torch.Tensor",
            help="convert arrays with torch.from_numpy; a dataclass needs "
            "torch.export.register_dataclass; give other settings to the module itself",
        )
    if value.is_nested or value.layout != torch.strided or value.is_quantized:
        kind = "quantised" if value.is_quantized else "nested" if value.is_nested else value.layout
        advice = "pass a plain tensor: x.to_dense(), x.dequantize(), or padded rows"
        raise BadInput(f"{what} is {kind}", help=advice)
    if value.is_meta:
        raise BadInput(
            f"{what} is on the meta device, which holds no values",
            help="pass a tensor of this shape with values: torch.randn, torch.randint",
        )
    if value.dtype not in DTYPES or value.dtype in WIDE:
        raise BadInput(
            f"{what} is {value.dtype}", help="pass float32 (x.float()), integer or bool tensors"
        )
    if not value.numel():
        raise BadInput(
            f"{what} of shape {list(value.shape)} holds no element",
            help="pass one of the size that the compiled model is to take",
        )
