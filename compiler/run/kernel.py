"""One kernel on this machine: compiled, loaded, called with arrays. For benchmarks and tuning."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ...kernels.lanes import Lanes
from ...kernels.layout import pack, storage
from ...kernels.record import Kernel, Spec, Tensor
from ..ir.ops import OPS
from ..ir.types import STORAGE
from ..lower.link import c_compiler, run
from ..lower.tir import build_object
from .native import aligned_buffer


def spec_for(
    op: str, operands: Sequence[Tensor], results: Sequence[Tensor], **attributes: Any
) -> Spec:
    """What kernels are asked for, of an op by its name: attributes that are left out are default.

    Raises KeyError for another op, ValueError for an attribute that it does not have, or needs.
    """
    whole = OPS[op].complete(attributes)
    return Spec(op, tuple(sorted(whole.items())), tuple(operands), tuple(results))


def with_layouts(kernel: Kernel, spec: Spec, lanes: Lanes) -> Spec:
    """``spec`` with its constants packed as ``kernel`` wants them."""
    layouts = kernel.layouts(spec, lanes)
    operands = [replace(t, layout=layouts.get(i, t.layout)) for i, t in enumerate(spec.operands)]
    return replace(spec, operands=tuple(operands))


@dataclass(frozen=True)
class Call:
    """A compiled kernel bound to its buffers: ``call()`` computes ``results`` anew."""

    function: Any
    buffers: tuple[np.ndarray, ...]
    results: tuple[np.ndarray, ...]
    numbers: tuple[int, ...] = ()

    def __call__(self) -> None:
        self.raw()()

    def raw(self) -> Callable[[], None]:
        """The same call with its pointers made once: what a benchmark repeats."""
        pointers = [ctypes.c_void_p(buffer.ctypes.data) for buffer in self.buffers]
        call = partial(self.function, *pointers, *map(ctypes.c_int32, self.numbers))
        # Pointers do not keep what they point to.
        call.buffers = self.buffers  # type: ignore[attr-defined]
        return call


def bind(
    kernel: Kernel,
    spec: Spec,
    arrays: Sequence[np.ndarray],
    lanes: Lanes,
    target: Mapping[str, Any],
) -> Call:
    """``kernel`` compiled for ``spec`` on ``arrays``, which are given unpacked.

    Raises ToolMissing if there is no C compiler to link with.
    """
    spec = with_layouts(kernel, spec, lanes)
    symbol = f"{kernel.name}_{spec.digest}"
    content = build_object({symbol: kernel.build(kernel.opened(spec), lanes, symbol)}, target)
    operands = [
        _placed(pack(tensor.layout, array) if tensor.layout else array)
        for tensor, array in zip(spec.operands, arrays, strict=True)
    ]
    results = tuple(_empty(tensor) for tensor in spec.results)
    scratch = [_empty(tensor) for tensor in kernel.scratch(spec, lanes)]
    with TemporaryDirectory() as folder:
        (Path(folder) / "kernel.o").write_bytes(content)
        run([*c_compiler(), "-shared", "-o", "kernel.so", "kernel.o"], folder)
        function = ctypes.CDLL(str(Path(folder) / "kernel.so"))[symbol]
    function.restype = None
    numbers = kernel.arguments(spec)
    return Call(function, (*operands, *results, *scratch), results, numbers)


def _placed(array: np.ndarray) -> np.ndarray:
    """A copy that starts at a cache line, as it will in a model."""
    flat = aligned_buffer(array.nbytes)[: array.nbytes]
    placed = flat.view(array.dtype).reshape(array.shape)
    placed[...] = array
    return placed


def _empty(tensor: Tensor) -> np.ndarray:
    stored = storage(tensor)
    return _placed(np.zeros(stored.shape, STORAGE[stored.dtype]))
