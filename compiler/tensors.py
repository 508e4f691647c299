"""Arrays as safetensors bytes: no pickles, and the same bytes for the same arrays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from .errors import BadInput, Damaged

_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_DTYPES = ("bool", *_INTEGERS, "float16", "float32", "float64")


def pack_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """The arrays as one safetensors file, whatever their order in the mapping or in memory."""
    ready = {}
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if array.dtype.name not in _DTYPES:
            raise BadInput(
                f"array '{name}' holds {array.dtype}, which cannot be stored",
                help=f"one of {', '.join(_DTYPES)}",
            )
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        ready[name] = np.ascontiguousarray(little).reshape(array.shape)
    return save(ready)


def unpack_arrays(data: bytes, where: str | None = None) -> dict[str, NDArray[np.generic]]:
    """The arrays of a safetensors file, by name. ``where`` names the file in an error."""
    try:
        arrays = load(data)
    except SafetensorError as error:
        raise Damaged(
            f"not a safetensors file: {error}",
            where=where,
            help="compile or copy the file again",
        ) from error
    return {name: arrays[name] for name in sorted(arrays)}
