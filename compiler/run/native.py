"""Running a compiled model on this machine through its C interface."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from weakref import finalize

import numpy as np

from ..errors import BadInput, ButterflycError, Incompatible
from ..ir import Type
from ..lower.cross import this_architecture
from ..lower.elf import architecture_of

ALIGNMENT = 64


class RunFailed(ButterflycError):
    """A compiled model returned an error of its own."""

    code = "BF996"


class Native:
    """A loaded library: ``model(*inputs)`` gives its outputs. Not for several threads at once.

    Compiled for several ``threads`` it computes in as many, but not in more than this process has
    cores; ``arena_bytes`` are then those of ``NAME_MT_ARENA_BYTES``.
    """

    def __init__(
        self,
        library: bytes,
        name: str,
        inputs: Sequence[Type],
        outputs: Sequence[Type],
        arena_bytes: int,
        cpu_features: Sequence[str] = (),
        threads: int = 1,
    ) -> None:
        check_architecture(library)
        check_cpu(cpu_features)
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        # The file may go once it is loaded: the mapping keeps its pages.
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"lib{name}.so"
            path.write_bytes(library)
            try:
                loaded = ctypes.CDLL(str(path))
            except OSError as error:
                raise Incompatible(
                    f"this system cannot load the library: {error}",
                    help="compile the model again on this machine: --target host",
                ) from error
        self._run = getattr(loaded, f"{name}_run_mt" if threads > 1 else f"{name}_run")
        self._run.restype = ctypes.c_int
        self._pool = Pool(loaded, name, threads) if threads > 1 else None
        self._arena = aligned_buffer(arena_bytes)

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Raises BadInput if an array does not fit, RunFailed if the model reports an error."""
        arrays = [
            fitting(i, x, type)
            for i, (x, type) in enumerate(zip(inputs, self._inputs, strict=True))
        ]
        results = [np.empty(type.shape, type.storage) for type in self._outputs]
        pool = [self._pool.pointer()] if self._pool else []
        status = self._run(_pointers(arrays), _pointers(results), _pointer(self._arena), *pool)
        if status != 0:
            raise RunFailed(f"the compiled model returned status {status}")
        return tuple(results)

    def many(self, samples: Sequence[tuple[np.ndarray, ...]]) -> list[tuple[np.ndarray, ...]]:
        """The outputs for each of ``samples``. Raises what a call does."""
        return [self(*sample) for sample in samples]

    def peek(self, at: int, type: Type) -> np.ndarray:
        """A copy of the tensor that the last run left at offset ``at`` of the arena."""
        return self._arena[at : at + type.bytes].view(type.storage).reshape(type.shape).copy()


class Pool:
    """The threads of a library: started when they are first asked for, ended with this object."""

    def __init__(self, loaded: ctypes.CDLL, name: str, threads: int) -> None:
        self.threads = min(threads, cores())
        self._create: Callable[[int], int | None] = getattr(loaded, f"{name}_pool_create")
        self._create.restype = ctypes.c_void_p
        self._destroy = getattr(loaded, f"{name}_pool_destroy")
        self._destroy.argtypes = [ctypes.c_void_p]
        self._made: int | None = None
        self._process = 0

    def pointer(self) -> ctypes.c_void_p:
        """The pool of this process: one that was forked off gets its own.

        Raises RunFailed if the system gives no threads.
        """
        if self._process != os.getpid():
            self._made = self._create(self.threads)
            if self._made is None:
                raise RunFailed(
                    f"the system did not give {self.threads - 1} threads beside this one",
                    help="raise its limits (ulimit -u, -v), or compile the model for one thread",
                )
            self._process = os.getpid()
            finalize(self, self._destroy, self._made)
        return ctypes.c_void_p(self._made)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def aligned_buffer(size: int) -> np.ndarray:
    """``size`` bytes (at least one) that start at a multiple of 64."""
    block = np.zeros(size + ALIGNMENT, np.uint8)
    start = -block.ctypes.data % ALIGNMENT
    return block[start : start + max(size, 1)]


def check_architecture(library: bytes) -> None:
    """Raises Incompatible unless ``library`` is for the architecture that this process runs as."""
    needed, here = architecture_of(library), this_architecture()
    if needed != here:
        raise Incompatible(
            f"this library is for {needed}, which this machine is not: it runs {here}",
            help="--on qemu emulates ARM, --on ssh:HOST runs it on another machine; "
            "--target host compiles for this one",
        )


def check_cpu(features: Sequence[str]) -> None:
    """Raises Incompatible unless this CPU has all ``features`` (names as Linux prints them)."""
    missing = sorted(set(features) - cpu_features())
    if missing:
        raise Incompatible(
            f"this artefact needs the CPU feature{'s' if len(missing) > 1 else ''} "
            f"{', '.join(missing)}, which this {platform.machine()} lacks",
            help="compile the model again on or for this machine: --target host",
        )


def cpu_name() -> str:
    """The CPU as the system calls it; on boards whose system does not, the board."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    if names:
        return names[0]
    with suppress(OSError):
        return Path("/proc/device-tree/model").read_text().strip("\0\n ")
    return platform.processor() or platform.machine()


def cpu_features() -> frozenset[str]:
    """The feature flags of this machine's first CPU; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        if line.startswith(("flags", "Features")):
            found = frozenset(line.split(":", 1)[1].split())
            # An ARM of 64 bits runs programs of 32 with what they had, and does not name it.
            return found | {"neon", "vfpv4"} if "asimd" in found else found
    return frozenset()


def fitting(index: int, array: np.ndarray, type: Type) -> np.ndarray:
    """``array``, dense. Raises BadInput unless it is of ``type``."""
    array = np.asarray(array)
    if array.dtype != type.storage or array.shape != type.shape:
        raise BadInput(
            f"input {index} is {array.dtype}{list(array.shape)}, "
            f"the model wants {type.storage}{list(type.shape)}",
            help=f"pass x.astype('{type.storage}'), or a tensor of that dtype",
        )
    return np.ascontiguousarray(array)


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _pointers(arrays: Sequence[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
