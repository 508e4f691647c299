"""A compiled model's C on a machine that QEMU emulates: its results, and what it costs, exactly.

A firmware (``machines/firmware.c``) holds some samples and the model, and writes what the model
makes of each. The model is compiled once; each lot of samples is linked to it and run.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import ceil
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from ..errors import DoesNotFit
from ..ir import Type
from .bare_metal import (
    MAX_OUTPUT_BYTES,
    Sizes,
    compile_sources,
    compiler_version,
    link,
    object_symbols,
    run,
    sizes,
)
from .frames import Ran, read_frames
from .machine import MACHINES, load_machine, machine_names
from .native import RunFailed, fitting

Array = np.ndarray
Progress = Callable[[str], None]

# Of a machine's code and of its data so much is left to what the compiler and the machine add.
OWN_BYTES = 64 << 10
# At most so many bytes of samples in one program, and half of what a program may write.
LOT_BYTES = 2 << 20
LOT_OUTPUT_BYTES = MAX_OUTPUT_BYTES // 2
# QEMU does 150 to 250 million a second on a core of its own: a lot takes some 10 s, a tenth of
# that speed is waited for, and the first run may take long, as nothing is known of it.
LOT_INSTRUCTIONS = 2_000_000_000
SLOWEST = 15_000_000
FIRST_SECONDS = 600.0
START_SECONDS = 60.0

SAMPLES = """\
    .section .rodata, "a"
    .balign 8
    .global __samples
__samples:
    .incbin "firmware-samples.bin"
    .balign 4
    .global __sample_count
__sample_count:
    .4byte {count}
"""
HEADER = """\
#include "{name}.h"
#define MODEL_RUN {name}_run
#define MODEL_TICK {name}_tick
#define MODEL_ARENA_BYTES {upper}_ARENA_BYTES
#ifdef {upper}_STEPS
#define MODEL_STEPS {upper}_STEPS
#endif
#define MODEL_INPUTS {inputs}
#define MODEL_OUTPUTS {outputs}
#define INPUT_BYTES {input_bytes}
#define OUTPUT_BYTES {output_bytes}
#define TOTAL_OUTPUT_BYTES {total_output}
#define SAMPLE_BYTES {sample}
"""


class Emulated:
    """The C files of a model on ``machine``.

    ``instructions`` and ``stack_bytes`` grow with runs, as do ``steps``, the instructions of each
    step of each run: empty for a model whose NAME.h does not say how many NAME_STEPS it has.
    ``files`` are texts by name, with NAME.h and NAME.c among them. Raises UnknownName for another
    machine, ToolMissing with what to install, ToolFailed if a compiler refuses the files,
    DoesNotFit if the machine has too little memory for it.
    """

    def __init__(
        self,
        machine: str,
        files: Mapping[str, str],
        name: str,
        inputs: Sequence[Type],
        outputs: Sequence[Type],
        progress: Progress = lambda _: None,
    ) -> None:
        self.machine = machine
        self.instructions: tuple[int, ...] = ()
        self.steps: tuple[tuple[int, ...], ...] = ()
        self.stack_bytes = 0
        self._files = [file for file in files if file.endswith(".c")]
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._progress = progress
        self._folder = Path(mkdtemp(prefix="butterflyc-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        progress(f"compiling {name} for {machine}")
        self.compiler = compiler_version(machine)
        texts = {**files, "firmware-model.h": _header(name, self._inputs, self._outputs)}
        self._objects = compile_sources(machine, texts, self._folder)
        firmware = (MACHINES / "firmware.c").read_text(encoding="utf-8")
        self._firmware = compile_sources(machine, {"firmware.c": firmware}, self._folder)
        self._sizes = {
            file: sizes(machine, self._folder / object)
            for file, object in zip(self._files, self._objects, strict=True)
        }
        firmware_size = sizes(machine, self._folder / self._firmware[0])
        self._left = _left(machine, name, [*self._sizes.values(), firmware_size], self._inputs)

    @property
    def sizes(self) -> Mapping[str, Sizes]:
        """Bytes of the object that each C file of the model became."""
        return self._sizes

    @cached_property
    def foreign(self) -> frozenset[str]:
        """The symbols that the model asks of others, such as memcpy."""
        own: set[str] = set()
        asked: set[str] = set()
        for object in self._objects:
            for symbol in object_symbols(self.machine, self._folder / object):
                # nm's w is a symbol that may be missing.
                (asked if symbol.kind in "Uw" else own).add(symbol.name)
        return frozenset(asked - own)

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        """As `Native`'s."""
        return self.many([inputs])[0]

    def many(self, samples: Sequence[tuple[Array, ...]]) -> list[tuple[Array, ...]]:
        """The outputs for each of ``samples``.

        Raises BadInput if an array does not fit, RunFailed if the model reports an error,
        ProgramFailed if it traps or does not end.
        """
        runs = self._run_all(samples)
        self.instructions += tuple(ran.instructions for ran in runs)
        self.steps += tuple(ran.steps for ran in runs)
        self.stack_bytes = max([self.stack_bytes, *(ran.stack_bytes for ran in runs)])
        return [self._results(ran.outputs) for ran in runs]

    def _run_all(self, samples: Sequence[tuple[Array, ...]]) -> list[Ran]:
        blocks = [self._block(sample) for sample in samples]
        runs: list[Ran] = []
        for lot in self._lots(blocks[:1]):
            runs += self._run_lot(lot, FIRST_SECONDS, 0)
        each = max([1, *(ran.instructions for ran in runs)])
        for lot in self._lots(blocks[1:], each):
            self._progress(f"{self.machine}: {len(runs)} of {len(blocks)} samples done")
            seconds = START_SECONDS + len(lot) * each / SLOWEST
            runs += self._run_lot(lot, seconds, len(runs))
        return runs

    def _lots(self, blocks: Sequence[bytes], instructions: int = 1) -> list[Sequence[bytes]]:
        """``blocks`` in lots that fit beside the model, and that take some seconds."""
        if not blocks:
            return []
        room = min(LOT_BYTES, self._left) // max(1, len(blocks[0]))
        written = LOT_OUTPUT_BYTES // max(1, sum(map(_bytes, self._outputs)))
        count = max(1, min(room, written, LOT_INSTRUCTIONS // instructions))
        lots = ceil(len(blocks) / count)
        return [
            blocks[len(blocks) * i // lots : len(blocks) * (i + 1) // lots] for i in range(lots)
        ]

    def _run_lot(self, lot: Sequence[bytes], seconds: float, before: int) -> list[Ran]:
        (self._folder / "firmware-samples.bin").write_bytes(b"".join(lot))
        made = {"firmware-samples.s": SAMPLES.format(count=len(lot))}
        samples = compile_sources(self.machine, made, self._folder)
        objects = [*self._objects, *self._firmware, *samples]
        elf = link(self.machine, objects, self._folder, "firmware.elf")
        output = run(self.machine, elf, seconds).checked()
        output_bytes = sum(map(_bytes, self._outputs))
        runs = read_frames(output.data, output_bytes)
        for i, ran in enumerate(runs):
            if ran.status != 0:
                raise RunFailed(
                    f"the compiled model returned status {ran.status} on {self.machine} for "
                    f"sample {before + i}"
                )
        assert len(runs) == len(lot), f"{len(lot)} samples, {len(runs)} results"
        return runs

    def _block(self, sample: tuple[Array, ...]) -> bytes:
        pairs = zip(sample, self._inputs, strict=True)
        return b"".join(_padded(fitting(i, x, t).tobytes()) for i, (x, t) in enumerate(pairs))

    def _results(self, block: bytes) -> tuple[Array, ...]:
        found, at = [], 0
        for type in self._outputs:
            flat = np.frombuffer(block, type.storage, type.size, at)
            found.append(flat.reshape(type.shape).copy())
            at += _bytes(type)
        return tuple(found)


def _header(name: str, inputs: Sequence[Type], outputs: Sequence[Type]) -> str:
    return HEADER.format(
        name=name,
        upper=name.upper(),
        inputs=len(inputs),
        outputs=len(outputs),
        input_bytes="".join(f"{_bytes(type)}, " for type in inputs),
        output_bytes="".join(f"{_bytes(type)}, " for type in outputs),
        total_output=sum(map(_bytes, outputs)),
        sample=sum(map(_bytes, inputs)),
    )


def _left(machine: str, name: str, parts: Sequence[Sizes], inputs: Sequence[Type]) -> int:
    """Bytes for samples beside ``parts`` of a program. Raises DoesNotFit if one has no room."""
    code = sum(part.text for part in parts) + OWN_BYTES
    data = sum(part.data + part.bss for part in parts) + OWN_BYTES
    sample = sum(map(_bytes, inputs))
    record = load_machine(machine)
    needs = (
        ("code and constants", code + sample, record.code_bytes),
        ("its arena and outputs", data, record.data_bytes),
    )
    short = [
        f"{need:,} bytes of {what}, {have:,} are there: {need - have:,} too many"
        for what, need, have in needs
        if need > have
    ]
    if short:
        larger = [
            other.name
            for other in map(load_machine, machine_names())
            if code + sample <= other.code_bytes and data <= other.data_bytes
        ]
        raise DoesNotFit(
            f"{name} does not fit the emulated {machine}: it needs {'; '.join(short)}",
            help=(
                f"to run it in QEMU, compile it for {' or '.join(larger)}, which has more here; "
                if larger
                else "no emulated machine has as much; compile a smaller model; "
            )
            + "what a chip has is another matter: `butterflyc inspect OUT memory`",
        )
    return record.code_bytes - code


def _bytes(type: Type) -> int:
    """Bytes of a port in the firmware: each starts where any number may lie."""
    return ceil(type.bytes / 8) * 8


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 8)
