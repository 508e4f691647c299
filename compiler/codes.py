"""Real numbers as codes at the inputs of an integer graph, and back at its outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..kernels.integer_numbers import LIMITS
from .ir.graph import Graph
from .ir.interpret import Observer, interpret
from .ir.types import Type

Array = np.ndarray


def takes_codes(type: Type) -> bool:
    """Whether a value of ``type`` is codes, each of which stands for code * scale."""
    return type.scale is not None and type.dtype in LIMITS


def real(type: Type) -> Type:
    """The type of the real numbers that a value of ``type`` stands for."""
    return Type("f32", type.shape) if takes_codes(type) else type


def encode(array: Array, type: Type) -> Array:
    """The nearest codes to real numbers, halves to even; the ends for what lies beyond them.

    What is no float, and what ``type`` wants as it is, stays as it is. NaN becomes 0.
    """
    if not takes_codes(type) or not np.issubdtype(array.dtype, np.floating):
        return array
    limit = LIMITS[type.dtype]
    scaled = np.nan_to_num(array.astype(np.float64) / (type.scale or 1), nan=0.0)
    return np.clip(np.rint(scaled), -limit, limit).astype(type.storage)


def decode(codes: Array, type: Type) -> Array:
    """The real numbers, float32, that codes stand for; what is no codes stays as it is."""
    if not takes_codes(type):
        return codes
    return np.asarray(codes * np.float64(type.scale or 1), np.float32)


def interpret_real(
    graph: Graph, *inputs: Array, observe: Observer | None = None
) -> tuple[Array, ...]:
    """`interpret`, with real numbers in place of codes at both ends."""
    codes = [encode(np.asarray(x), n.type) for x, n in zip(inputs, graph.inputs, strict=True)]
    outputs = interpret(graph, *codes, observe=observe)
    return decoded(outputs, [node.type for node in graph.outputs])


def decoded(outputs: Sequence[Array], types: Sequence[Type]) -> tuple[Array, ...]:
    return tuple(decode(y, type) for y, type in zip(outputs, types, strict=True))
