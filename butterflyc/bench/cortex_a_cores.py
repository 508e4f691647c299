"""ARM cores that are modelled, what they can do at most, and what is wanted of kernels on them."""

from __future__ import annotations

import attrs

from ..compiler.run.cycles import model_blocks
from ..compiler.run.machine_code import Block, Instruction
from ..compiler.run.products import products_of


@attrs.frozen
class Memory:
    """What one core of a board reads of its memory: as people tell it, unchecked."""

    gigabytes: float
    gigahertz: float

    @property
    def bytes_per_cycle(self) -> float:
        return self.gigabytes / self.gigahertz

    def __str__(self) -> str:
        return f"{self.gigabytes:g} GB/s at {self.gigahertz:g} GHz: folklore, unchecked"


@attrs.frozen
class ModelledCore:
    """A core: our target for it, LLVM's model and QEMU's CPU that stand for it, its memory.

    ``one_row`` and ``many_rows`` are the products a cycle that the loop of a ternary product shall
    reach, with ``_7_bits`` that of one of 7-bit codes; ``dense`` is the fraction of the peak for
    floats, and ``epilogue`` the largest share of the cycles of fused experts that may lie behind
    their product. ``peers`` are the products a cycle of others' loops for one row, ``panel_peers``
    those that need many: they were read off the same models in August 2026.
    """

    target: str
    model: str
    emulated: str
    memory: Memory | None = None
    one_row: float | None = None
    many_rows: float | None = None
    one_row_7_bits: float | None = None
    many_rows_7_bits: float | None = None
    dense: float | None = None
    epilogue: float | None = None
    peers: tuple[tuple[str, float], ...] = ()
    panel_peers: tuple[tuple[str, float], ...] = ()


CORES = {
    "a53": ModelledCore(
        "cortex-a53",
        "cortex-a53",
        "cortex-a53",
        Memory(2, 1.2),
        one_row=4.5,
        many_rows=6,
        one_row_7_bits=5.5,
        many_rows_7_bits=7,
        peers=(("ggml TQ2_0", 2.0),),
    ),
    # QEMU has no A55 of its own.
    "a55": ModelledCore(
        "cortex-a55",
        "cortex-a55",
        "max",
        peers=(("ggml TQ2_0", 2.5),),
        panel_peers=(("KleidiAI qsu2cx", 7.4),),
    ),
    "a72": ModelledCore(
        "cortex-a72",
        "cortex-a72",
        "cortex-a72",
        Memory(4, 1.5),
        one_row=7.8,
        many_rows=7.5,
        one_row_7_bits=10,
        many_rows_7_bits=13,
        dense=0.95,
        epilogue=0.25,
        peers=(("ggml TQ2_0", 7.1),),
    ),
    # LLVM has no model of the A76: the Neoverse N1 is the same core for servers.
    "a76": ModelledCore(
        "cortex-a76",
        "neoverse-n1",
        "cortex-a76",
        Memory(12, 2.4),
        one_row=15,
        many_rows=28,
        dense=0.95,
        epilogue=0.25,
        peers=(("ggml TQ2_0", 12.7),),
        panel_peers=(("KleidiAI qsu2cx", 24.3),),
    ),
}

# Instructions that do nothing but products and do not wait for each other, as many as there are
# registers for.
INDEPENDENT = 24
PEAKS = {
    "fmla": "fmla v{}.4s, v30.4s, v31.4s",
    "sdot": "sdot v{}.4s, v30.16b, v31.16b",
    "smlal": "smlal v{}.8h, v30.8b, v31.8b",
}


def peak(model: str, name: str) -> float:
    """Products a cycle of nothing but ``name`` instructions, on LLVM's model of a core."""
    code = [Instruction(4 * i, PEAKS[name].format(i)) for i in range(INDEPENDENT)]
    block = Block(tuple(code), ())
    (cycles,) = model_blocks([block], model)
    return sum(products_of(block).values()) / cycles.steady
