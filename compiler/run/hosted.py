"""A compiled model as the program ``NAME-run``, on a system of its own: emulated, or far away."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import attrs
import numpy as np

from ..errors import Incompatible, ToolFailed
from ..ir import Type
from .native import RunFailed, fitting

Array = np.ndarray
Progress = Callable[[str], None]
Files = Mapping[str, bytes]

# Of main.c: the model itself returned an error.
MODEL_FAILED = 12
# At most so many bytes of inputs and outputs at once: a small board holds them beside the model.
LOT_BYTES = 32 << 20
SIGILL = 4


@attrs.frozen
class Finished:
    """How a program ended: its status (minus a signal), what it said, and the files it wrote."""

    status: int
    message: str
    files: Files


class Place(Protocol):
    """Where a program runs that was made for another machine."""

    @property
    def name(self) -> str:
        """What people call it."""

    def run(
        self,
        program: bytes,
        words: Sequence[str],
        reads: Files,
        writes: Sequence[str],
    ) -> Finished:
        """Run ``program`` with ``words`` in a fresh folder that holds the files ``reads``.

        ``writes`` are the files that it leaves there. Raises ToolMissing, ToolFailed.
        """


class Hosted:
    """``program``, the NAME-run of a model, at a place."""

    def __init__(
        self,
        program: bytes,
        inputs: Sequence[Type],
        outputs: Sequence[Type],
        place: Place,
        progress: Progress = lambda _: None,
    ) -> None:
        self.place = place
        self._program, self._progress = program, progress
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)

    def many(self, samples: Sequence[tuple[Array, ...]]) -> list[tuple[Array, ...]]:
        """The outputs for each of ``samples``.

        Raises BadInput if an array does not fit, RunFailed if the model reports an error,
        ToolFailed if the program cannot be run there.
        """
        return [outputs for outputs, _ in self.observed(samples, ())]

    def observed(
        self, samples: Sequence[tuple[Array, ...]], peeks: Sequence[tuple[int, Type]]
    ) -> list[tuple[tuple[Array, ...], tuple[Array, ...]]]:
        """The same, each with the tensors that its run left at these offsets of the arena."""
        dense = [
            tuple(fitting(i, x, t) for i, (x, t) in enumerate(zip(each, self._inputs, strict=True)))
            for each in samples
        ]
        # Without inputs, nothing tells the program how often to run.
        types = (*self._inputs, *self._outputs, *(type for _, type in peeks))
        count = max(1, LOT_BYTES // max(1, sum(t.bytes for t in types))) if self._inputs else 1
        found = []
        for start in range(0, len(dense), count):
            self._progress(f"{self.place.name}: {start} of {len(dense)} samples done")
            found += self._lot(dense[start : start + count], peeks)
        return found

    def _lot(
        self, lot: Sequence[tuple[Array, ...]], peeks: Sequence[tuple[int, Type]]
    ) -> list[tuple[tuple[Array, ...], tuple[Array, ...]]]:
        reads = {
            f"in{i}.npy": _npy(np.stack(column)) for i, column in enumerate(zip(*lot, strict=True))
        }
        writes = [f"out{i}.npy" for i in range(len(self._outputs))]
        seen = [f"peek{i}" for i in range(len(peeks))]
        words = [
            word
            for name, (at, type) in zip(seen, peeks, strict=True)
            for word in ("--peek", str(at), str(type.bytes), name)
        ]
        ended = self.place.run(
            self._program, ["--codes", *words, *reads, *writes], reads, [*writes, *seen]
        )
        if ended.status != 0:
            raise _failure(ended, self.place.name)
        outputs = [np.load(io.BytesIO(ended.files[name]), allow_pickle=False) for name in writes]
        if not reads:
            outputs = [array[None] for array in outputs]
        looks = [
            np.frombuffer(ended.files[name], type.storage).reshape(len(lot), *type.shape)
            for name, (_, type) in zip(seen, peeks, strict=True)
        ]
        return [
            (tuple(y[i] for y in outputs), tuple(look[i] for look in looks))
            for i in range(len(lot))
        ]


def _npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _failure(ended: Finished, place: str) -> Exception:
    said = f": {ended.message}" if ended.message else ""
    if ended.status == MODEL_FAILED:
        return RunFailed(f"on {place}{said}")
    # A shell says 128 + the signal.
    if ended.status in (-SIGILL, 128 + SIGILL):
        return Incompatible(
            f"the processor of {place} lacks an instruction that the program uses{said}",
            help="compile for its processor, or for --target aarch64 or armv7a, which all have",
        )
    return ToolFailed(f"the program ended with status {ended.status} on {place}{said}")
