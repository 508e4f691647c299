"""Calls of kernels at the papers' sizes: what they compute, on which numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from ..compiler.errors import VerificationFailed
from ..compiler.ir.ops import OPS
from ..compiler.ir.types import STORAGE
from ..compiler.run.kernel import spec_for
from ..kernels.lanes import Lanes
from ..kernels.record import Spec, Tensor

Array = np.ndarray[Any, np.dtype[Any]]
Random = np.random.Generator

CHANNELS, OUTPUTS, EXPERTS, CHOSEN, BLOCK = 256, 1024, 8, 2, 4


@attrs.frozen
class Case:
    """One call: the ``spec`` it asks for, on ``arrays``: rows x depth times depth x outputs.

    Results may differ from the op's meaning by ``tolerance`` of the largest of them.
    """

    name: str
    rows: int
    depth: int
    outputs: int
    spec: Spec
    arrays: tuple[Array, ...]
    tolerance: float

    @property
    def shape(self) -> str:
        return f"{self.rows}x{self.depth}x{self.outputs}"

    @property
    def products(self) -> int:
        return self.rows * self.depth * self.outputs

    @property
    def floats(self) -> bool:
        """Whether the products are of floats."""
        return self.spec.op == "linear"

    def check(self, results: Sequence[Array]) -> None:
        """Raises VerificationFailed if ``results`` are not what the op means."""
        wanted = self.meaning()
        error = float(np.abs(results[0] - wanted).max() / np.abs(wanted).max())
        if not error <= self.tolerance:
            raise VerificationFailed(
                f"{self.name} {self.shape} differs from its meaning by {error:.2g} of the largest "
                f"result, of {self.tolerance:g} allowed",
                help="the kernel, its lanes or the compiler is wrong: its figures mean nothing",
            )

    def meaning(self) -> Array:
        """What the op means, in float64."""
        full = dict(self.spec.attributes)
        doubled = [a.astype(np.float64) if a.dtype == np.float32 else a for a in self.arrays]
        return np.asarray(OPS[self.spec.op].meaning(*doubled, **full))


def cases(lanes: Lanes) -> list[Case]:
    """All of them, with rotations laid out for ``lanes``; of 7 bits where these are look-ups."""
    narrow = [
        ternary(1, CHANNELS, OUTPUTS, bits=7),
        ternary(65, CHANNELS, OUTPUTS, bits=7),
        # Chunks of one size: of two, what is behind one product would be before another.
        experts(64, lanes, bits=7),
    ]
    return [
        ternary(1, CHANNELS, OUTPUTS),
        ternary(65, CHANNELS, OUTPUTS),
        *(narrow if lanes.ternary.tables else []),
        experts(65, lanes),
        dense(1, 256, 256),
        dense(65, 256, 768),
        integer_dense(65, 256, 768),
    ]


def ternary(rows: int, depth: int, outputs: int, bits: int = 8) -> Case:
    """Codes of so many bits by ternary weights."""
    arrays = _codes(rows, depth, bits=bits), _ternary(outputs, depth)
    spec = _spec("ternary_dot", arrays, Tensor("i32", (rows, outputs)), ternary=1, bits=bits)
    return Case(_name("ternary_dot", bits), rows, depth, outputs, spec, arrays, 0)


def _name(op: str, bits: int) -> str:
    return op if bits == 8 else f"{op}_{bits}_bits"


def dense(rows: int, depth: int, outputs: int) -> Case:
    """Floats by floats, plus a bias."""
    arrays = _floats(rows, depth), _floats(outputs, depth), _floats(outputs)
    spec = _spec("linear", arrays, Tensor("f32", (rows, outputs)), activation="none")
    return Case("linear", rows, depth, outputs, spec, arrays, 1e-5)


def integer_dense(rows: int, depth: int, outputs: int) -> Case:
    """int8 by int8, plus a bias."""
    bias = _random().integers(-1000, 1000, outputs).astype(np.int32)
    arrays = _codes(rows, depth), _codes(outputs, depth), bias
    spec = _spec("integer_linear", arrays, Tensor("i32", (rows, outputs)), planes=0)
    return Case("integer_linear", rows, depth, outputs, spec, arrays, 0)


def experts(tokens: int, lanes: Lanes, bits: int = 8) -> Case:
    """A whole layer: two layers of rotation on either side, GELU, activations of so many bits."""
    rng = _random()
    arrays = (
        _floats(tokens, CHANNELS),
        _blocks(CHANNELS),
        _ternary(OUTPUTS, CHANNELS),
        np.asarray(np.float32(0.05)),
        _floats(OUTPUTS),
        _floats(tokens, CHOSEN),
        rng.integers(0, EXPERTS, (tokens, CHOSEN)),
        _blocks(OUTPUTS),
    )
    spec = _spec(
        "butterfly_experts",
        arrays,
        Tensor("f32", (tokens, OUTPUTS)),
        ternary=2,
        activation="gelu_poly",
        activate_last=False,
        activation_bits=bits,
        lanes_in=lanes.float_lanes,
        lanes_out=lanes.float_lanes,
        biased=False,
    )
    # A code of an activation near a tie may be rounded either way.
    name = _name("butterfly_experts", bits)
    return Case(name, tokens * CHOSEN, CHANNELS, OUTPUTS, spec, arrays, 2e-3)


def _spec(
    op: str, arrays: Sequence[Array], result: Tensor, ternary: int | None = None, **attributes: Any
) -> Spec:
    names = {np.dtype(code): name for name, code in STORAGE.items() if name != "ternary"}
    operands = [
        Tensor("ternary" if i == ternary else names[a.dtype], a.shape) for i, a in enumerate(arrays)
    ]
    return spec_for(op, operands, [result], **attributes)


def _random() -> Random:
    return np.random.default_rng(0)


def _codes(*shape: int, bits: int = 8) -> Array:
    most = 2 ** (bits - 1) - 1
    return _random().integers(-most, most + 1, shape).astype(np.int8)


def _ternary(*shape: int) -> Array:
    return _random().integers(-1, 2, shape).astype(np.int8)


def _floats(*shape: int) -> Array:
    return _random().standard_normal(shape).astype(np.float32)


def _blocks(width: int) -> Array:
    """Orthogonal blocks of every expert."""
    drawn = _random().standard_normal((EXPERTS, width // BLOCK, BLOCK, BLOCK))
    return np.linalg.qr(drawn)[0].astype(np.float32)
