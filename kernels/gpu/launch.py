"""What computes a layer on a GPU: launches of Triton kernels and products of the library, as data.

A kernel record of this folder has ``build(spec, gpu, name) -> Plan``. A plan names buffers: the
operands of the op by their names in the op table, its result ``y``, and ``scratch0`` ... for the
tensors of the record's ``scratch``. It can be compiled without a GPU, written into an artefact, run
by the driver, and interpreted on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from ..lanes import Lanes

# Triton's name of each dtype of the IR.
TRITON: dict[str, str] = {
    "f16": "fp16",
    "bf16": "bf16",
    "f32": "fp32",
    "i8": "i8",
    "u8": "u8",
    "i32": "i32",
    "i64": "i64",
}
Value = int | float | bool | str


@dataclass(frozen=True)
class Gpu(Lanes):
    """A GPU as kernels see it. Rates are peaks, for a model of costs only."""

    name: str = "sm90"
    # Compute capability, 10 * major + minor.
    capability: int = 90
    multiprocessors: int = 132
    # Bytes of shared memory that one block may have.
    shared_bytes: int = 232448
    # Bytes a second, and multiply-adds a second of 16-bit tensor cores.
    bandwidth: float = 4.0e12
    products: float = 4.0e14
    # Seconds that a kernel takes at least.
    launch_seconds: float = 2e-6

    @property
    def has_tensor_cores(self) -> bool:
        """Whether Triton uses them: it does so from Ampere on."""
        return self.capability >= 80

    @property
    def has_bf16(self) -> bool:
        return self.capability >= 80


@dataclass(frozen=True)
class Argument:
    """One argument of a launch: a buffer by name, or a number.

    ``type`` is Triton's: ``*fp16`` and the like for a buffer, which may be another view of its
    bytes; ``i32`` or ``fp32`` for a number. Whether a number is a multiple of 16 makes other code,
    unless it is ``plain``: where no address depends on it, one kernel then serves all numbers.
    """

    type: str
    value: str | int | float
    plain: bool = False

    @property
    def is_buffer(self) -> bool:
        return self.type.startswith("*")


@dataclass(frozen=True)
class Launch:
    """One launch of ``function``, which lies in kernels/gpu/``module``.py.

    ``arguments`` are those that are no constexpr, ``constants`` those that are; both by parameter
    name, in the order of the parameters.
    """

    module: str
    function: str
    arguments: tuple[tuple[str, Argument], ...]
    constants: tuple[tuple[str, Value], ...]
    grid: tuple[int, int, int]
    warps: int = 4
    stages: int = 3

    @property
    def key(self) -> tuple[Any, ...]:
        """What code is compiled from: equal for launches that one compiled kernel serves."""
        types = tuple((name, a.type, _aligned(a)) for name, a in self.arguments)
        return self.module, self.function, types, self.constants, self.warps, self.stages

    @property
    def symbol(self) -> str:
        """A name for the compiled kernel, stable between runs and machines."""
        return f"{self.function}_{sha256(repr(self.key).encode()).hexdigest()[:8]}"


def _aligned(argument: Argument) -> bool:
    """Whether Triton may take the address or number for a multiple of 16."""
    if argument.is_buffer:
        return True
    return isinstance(argument.value, int) and argument.value % 16 == 0 and not argument.plain


@dataclass(frozen=True)
class Product:
    """The library's ``out = rows @ weights.T``: rows [M, K], weights [N, K], out [M, N].

    Sums are float32, or int32 of int8 codes.
    """

    rows: str
    weights: str
    out: str


@dataclass(frozen=True)
class Fill:
    """Sets all of ``buffer`` to zero, for kernels that add to it."""

    buffer: str


@dataclass(frozen=True)
class Unpack:
    """Makes ``target`` [N, K] of ``dtype`` from the 2-bit codes of ``source``: -1, 0 and +1.

    Done once, when a program is loaded: files hold the codes, of the layout ``crumbs``. Rows and
    padding are as there, so also in fragment order where they are. Columns are in natural order;
    ``planar``, all first members of groups of four, then all second ones, and so on.
    """

    source: str
    target: str
    shape: tuple[int, int]
    dtype: str
    planar: bool = False


Step = Launch | Product | Fill


@dataclass(frozen=True)
class Plan:
    """``steps`` are done in order at each call; ``once`` when the program is loaded."""

    steps: tuple[Step, ...]
    once: tuple[Unpack, ...] = field(default=())
