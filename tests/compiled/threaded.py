"""Running ``NAME_run`` and ``NAME_run_mt`` of a library with pools of any size."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from butterflyc.compiler.ir import Graph, Type
from butterflyc.compiler.run.native import aligned_buffer
from butterflyc.program import Program

Array = np.ndarray
RUBBISH = 0xA7
GUARD = 64


class Threaded:
    """A loaded library, and what its functions need."""

    def __init__(
        self,
        library: bytes,
        name: str,
        inputs: Sequence[Type],
        outputs: Sequence[Type],
        arenas: tuple[int, int],
    ) -> None:
        self.inputs, self.outputs, self._arenas = tuple(inputs), tuple(outputs), arenas
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"lib{name}.so"
            path.write_bytes(library)
            loaded = ctypes.CDLL(str(path))
        self._run, self._run_mt = loaded[f"{name}_run"], loaded[f"{name}_run_mt"]
        self._create, self._destroy = loaded[f"{name}_pool_create"], loaded[f"{name}_pool_destroy"]
        self._create.restype, self._destroy.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

    def alone(self, *inputs: Array) -> list[Array]:
        """What ``NAME_run`` gives, from an arena full of rubbish."""
        return self._outputs(self._run, self._arenas[0], inputs)

    def together(self, threads: int, samples: Sequence[tuple[Array, ...]]) -> list[list[Array]]:
        """What ``NAME_run_mt`` gives for each sample, with one pool of ``threads``."""
        pool = self._create(threads)
        assert pool, f"no pool of {threads} threads"
        try:
            run = [ctypes.c_void_p(pool)]
            return [self._outputs(self._run_mt, self._arenas[1], x, run) for x in samples]
        finally:
            self._destroy(pool)

    def _outputs(
        self,
        function: ctypes._NamedFuncPointer,
        size: int,
        inputs: Sequence[Array],
        more: Sequence[ctypes.c_void_p] = (),
    ) -> list[Array]:
        arena = aligned_buffer(size + GUARD)
        arena[:] = RUBBISH
        outputs = [np.full(type.shape, 77, type.storage) for type in self.outputs]
        place = ctypes.c_void_p(arena.ctypes.data)
        assert function(_pointers(inputs), _pointers(outputs), place, *more) == 0
        assert (arena[size:] == RUBBISH).all(), "written behind the arena"
        return outputs

    def check(self, threads: Sequence[int], samples: Sequence[tuple[Array, ...]]) -> None:
        """Pools of all these sizes give the bits of ``NAME_run``, for every sample."""
        wanted = [self.alone(*sample) for sample in samples]
        for count in threads:
            for found, alone in zip(self.together(count, samples), wanted, strict=True):
                for a, b, type in zip(found, alone, self.outputs, strict=True):
                    assert a.tobytes() == b.tobytes(), f"{count} threads: another {type}"


def _pointers(arrays: Sequence[Array]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def of_program(program: Program) -> Threaded:
    """The library of a program that was compiled for several threads."""
    library = program.artefact.section(f"kernels/lib{program.name}.so")
    arenas = program.memory["arena"], program.memory["arena_mt"]
    return Threaded(library, program.name, program.inputs, program.outputs, arenas)


def of_graph(graph: Graph, files: dict[str, bytes], arena_mt: int, name: str = "m") -> Threaded:
    """The library that was emitted of a graph."""
    types = [n.type for n in graph.inputs], [n.type for n in graph.outputs]
    arenas = int(graph.notes["arena_bytes"]), arena_mt  # type: ignore[arg-type]
    return Threaded(files[f"lib{name}.so"], name, *types, arenas)
