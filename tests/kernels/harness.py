"""Run one kernel, on this machine or in QEMU: TIR to object to code to NumPy arrays."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from butterflyc.compiler.lower.tir import build_object
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.layout import pack, storage
from butterflyc.kernels.record import Kernel, Spec, Tensor
from butterflyc.targets.lanes_in_order import NeonInOrder
from butterflyc.targets.lanes_in_order_dot import NeonDotInOrder
from butterflyc.targets.lanes_neon import Neon, NeonDot, NeonV7
from butterflyc.targets.lanes_x86 import Avx2

from .emulated import EMULATORS, Emulated, Taken

Array = np.ndarray[Any, np.dtype[Any]]

# Bytes behind each buffer that is written, which must stay as they are.
GUARD = 64

NUMPY = {"bool": "?", "i8": "i1", "u8": "u1", "i16": "i2", "i32": "i4", "i64": "i8"}
NUMPY |= {"f32": "f4", "f64": "f8", "ternary": "i1"}

TRIPLE = f"{platform.machine()}-linux-gnu"
# Baseline code for the scalar lanes: what a machine that we know nothing about can run.
TARGETS: dict[str, dict[str, Any]] = {
    "scalar": {"kind": "llvm", "mtriple": TRIPLE},
    "avx2": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"},
    "neon": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"},
    "neon-in-order": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a53"},
    "neon-dotprod": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"},
    "neon-dotprod-in-order": {
        "kind": "llvm",
        "mtriple": "aarch64-linux-gnu",
        "mcpu": "cortex-a55",
    },
    "neon-v7": {
        "kind": "llvm",
        "mtriple": "armv7a-unknown-linux-gnueabihf",
        "mcpu": "cortex-a9",
        "mattr": ["+neon"],
    },
}


def _has_avx2() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    words = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return {"avx2", "fma"} <= set(words)


EVERY_LANES = [
    pytest.param(Lanes(), id="scalar"),
    pytest.param(
        Avx2(),
        id="avx2",
        marks=pytest.mark.skipif(not _has_avx2(), reason="this CPU has no AVX2 and FMA"),
    ),
    pytest.param(Neon(), id="neon"),
    pytest.param(NeonV7(), id="neon-v7"),
]
# What these have of their own, they have for integers alone.
INTEGER_LANES = [
    *EVERY_LANES,
    pytest.param(NeonInOrder(), id="neon-in-order"),
    pytest.param(NeonDot(), id="neon-dotprod"),
    pytest.param(NeonDotInOrder(), id="neon-dotprod-in-order"),
]


def tensor(array: Array) -> Tensor:
    """The type of an array."""
    names = {np.dtype(code): name for name, code in NUMPY.items() if name != "ternary"}
    return Tensor(names[array.dtype], array.shape)


def packed(kernel: Kernel, spec: Spec, lanes: Lanes) -> Spec:
    """``spec`` with the layouts that the kernel wants of its constants."""
    layouts = kernel.layouts(spec, lanes)
    operands = [replace(t, layout=layouts.get(i, t.layout)) for i, t in enumerate(spec.operands)]
    return replace(spec, operands=tuple(operands))


# Shared libraries stay loaded, so their files may go. Each has a path of its own: dlopen gives the
# library that it has for a path that it knows.
_folder = TemporaryDirectory()
_numbers = count()


# The memory of all buffers, operands first, and the numbers behind them.
Call = Callable[[Sequence[Array], Sequence[int]], None]


def linked(lanes: Lanes, content: bytes, kernels: Taken) -> dict[str, Call]:
    """The functions of an object by symbol."""
    if lanes.name in EMULATORS:
        program = Emulated(lanes.name, content, kernels)
        return {symbol: partial(program.call, symbol) for symbol in kernels}
    path = Path(_folder.name) / f"kernels_{next(_numbers)}"
    path.with_suffix(".o").write_bytes(content)
    command = ["cc", "-shared", "-Wl,-z,defs", "-o", f"{path}.so", f"{path}.o"]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(f"{path}.so")

    def function(symbol: str) -> Call:
        def call(memory: Sequence[Array], numbers: Sequence[int]) -> None:
            pointers = (ctypes.c_void_p(m.ctypes.data) for m in memory)
            library[symbol](*pointers, *map(ctypes.c_int32, numbers))

        library[symbol].restype = None
        return call

    return {symbol: function(symbol) for symbol in kernels}


@cache
def load(kernel: Kernel, spec: Spec, lanes: Lanes) -> Call:
    """The compiled function."""
    name = f"{kernel.name}_{spec.digest}"
    functions = {name: kernel.build(kernel.opened(spec), lanes, name)}
    buffers = [*spec.operands, *spec.results, *kernel.scratch(spec, lanes)]
    content = build_object(functions, TARGETS[lanes.name])
    return linked(lanes, content, {name: (len(buffers), len(kernel.arguments(spec)))})[name]


def guarded(tensor: Tensor) -> tuple[Array, Array]:
    """Garbage that holds an array of this type, and 64 guard bytes behind it; and the array."""
    stored = storage(tensor)
    dtype = np.dtype(NUMPY[stored.dtype])
    size = int(np.prod(stored.shape, dtype=np.int64)) * dtype.itemsize
    memory = np.full(size + GUARD, 0xAB, np.uint8)
    return memory, memory[:size].view(dtype).reshape(stored.shape)


def run(kernel: Kernel, spec: Spec, arrays: Sequence[Array], lanes: Lanes) -> list[Array]:
    """The kernel's results for ``arrays``, given unpacked.

    Results and scratch start as garbage (0xAB...), and a byte written behind one is an error.
    """
    spec = packed(kernel, spec, lanes)
    if not kernel.supports(spec, lanes):
        raise ValueError(f"kernel {kernel.name} does not support {spec}")
    inputs = []
    for operand, array in zip(spec.operands, arrays, strict=True):
        value = np.asarray(array, NUMPY[operand.dtype], order="C")
        if value.shape != operand.shape:
            raise ValueError(f"an operand is {value.shape}, the spec says {operand}")
        inputs.append(pack(operand.layout, value) if operand.layout else value)
    results = [guarded(result) for result in spec.results]
    scratch = [guarded(buffer) for buffer in kernel.scratch(spec, lanes)]
    written = [memory for memory, _ in [*results, *scratch]]
    load(kernel, spec, lanes)([*inputs, *written], kernel.arguments(spec))
    for memory in written:
        if not np.all(memory[-GUARD:] == 0xAB):
            raise AssertionError(f"kernel {kernel.name} wrote behind a buffer: {spec}")
    return [result for _, result in results]


def flushed(lanes: Lanes, array: Array) -> Array:
    """``array`` as these lanes take it: NEON of ARMv7-A has zeros for denormals, in any mode."""
    if lanes.name != "neon-v7" or array.dtype != np.float32:
        return array
    small = np.abs(array) < np.finfo(np.float32).tiny
    return np.where(small, np.copysign(np.float32(0), array), array)


def relative_error(result: Array, wanted: Array) -> float:
    """The norm of the difference over the norm of ``wanted`` (1 where that is zero)."""
    wanted = wanted.astype(np.float64)
    scale = float(np.linalg.norm(wanted)) or 1.0
    return float(np.linalg.norm(result.astype(np.float64) - wanted)) / scale
