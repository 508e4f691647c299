"""Packed layouts of constant operands, by name: pure NumPy, no TVM.

A layout's name is a family and its sizes: ``panel16``, ``ternary8x4``. A family is one file,
``layout_<family>.py``, that exports ``LAYOUT``; nothing else lists it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from .record import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A family of packings. ``sizes`` are the numbers in the layout's name.

    ``storage(sizes, tensor)`` is the packed tensor's own dtype and shape; ``pack(sizes, array)``
    makes it from an array of the logical shape; ``unpack(sizes, packed, shape)`` gets that back.
    """

    storage: Callable[[Sizes, Tensor], Tensor]
    pack: Callable[[Sizes, Array], Array]
    unpack: Callable[[Sizes, Array, tuple[int, ...]], Array]


def _find(name: str) -> tuple[Layout, Sizes]:
    match = re.fullmatch(r"([a-z_]+?)(\d+(?:x\d+)*)", name)
    module = f"{__package__}.layout_{match[1]}" if match else ""
    if match is None or find_spec(module) is None:
        raise ValueError(
            f"unknown layout '{name}': want a family and its sizes, such as 'panel16', "
            "with the family in kernels/layout_<family>.py"
        )
    layout: Layout = import_module(module).LAYOUT
    return layout, tuple(map(int, match[2].split("x")))


def storage(tensor: Tensor) -> Tensor:
    """The tensor as it lies in memory: itself if unpacked, else the packed dtype and shape."""
    if tensor.layout is None:
        return tensor
    layout, sizes = _find(tensor.layout)
    return layout.storage(sizes, tensor)


def pack(name: str, array: Array) -> Array:
    """``array`` packed, contiguous."""
    layout, sizes = _find(name)
    return np.ascontiguousarray(layout.pack(sizes, array))


def unpack(name: str, packed: Array, shape: tuple[int, ...]) -> Array:
    """The array of logical ``shape`` that was packed."""
    layout, sizes = _find(name)
    return layout.unpack(sizes, packed, shape)
