"""What stands for the result of a refused call, so that its readers are looked at too."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..ir.build import input_node
from .aten_complex import Complex
from .fakes import DTYPES, UNKNOWN, Sizes


def stand_in(fake: Any, sizes: Sizes) -> Any:
    """A value in place of one that was refused, so that its readers are checked too.

    UNKNOWN where its type is not known either, or which of its rows count.
    """
    if isinstance(fake, tuple | list):
        return tuple(stand_in(part, sizes) for part in fake)
    if not isinstance(fake, Tensor) or fake.dtype.to_real() not in DTYPES:
        return UNKNOWN
    type = sizes.type_of(fake)
    if type is None or any(map(sizes.is_padded, fake.shape)):
        return UNKNOWN
    node = input_node("unknown", type)
    return Complex(node, node) if fake.is_complex() else node
