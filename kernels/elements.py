"""How elements lie in memory and are computed with: what the generic kernels share.

Every operand is one flat buffer; its axes are strides. Bools are bytes 0 and 1. Narrow integers are
computed in int32 and cut when stored, which is the same as wrapping at every step.

A law for every comparison of floats: TVM's ``!=`` is "ordered and unequal" in LLVM, it turns
``not (a < b)`` into ``b <= a``, and folds ``x == x`` to true. So NaN is told by its bits
(``is_nan``), and a negation is written as ``Select(a == b, 0, 1)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any

from .record import Spec, Tensor
from .tir import DTYPES, T, broadcast, cast, dtype_of, span, store

# The dtypes that are computed with, and in what.
COMPUTED = {"bool": "int32", "i8": "int32", "u8": "int32", "i16": "int32", "i32": "int32"}
COMPUTED |= {"i64": "int64", "f32": "float32"}

_BYTES = {"bool": 1, "i8": 1, "u8": 1, "i16": 2, "i32": 4, "f32": 4, "i64": 8, "f64": 8}

Strides = tuple[int, ...]


def plain(spec: Spec) -> bool:
    """Whether every tensor is unpacked, of a dtype that TIR can hold, and not empty."""
    tensors = (*spec.operands, *spec.results)
    return all(t.layout is None and t.dtype in DTYPES and 0 not in t.shape for t in tensors)


def held(tensor: Tensor) -> Tensor:
    """The same memory as one flat row; bools as bytes."""
    dtype = "i8" if tensor.dtype == "bool" else tensor.dtype
    return Tensor(dtype, (prod(tensor.shape),))


def parameters(spec: Spec) -> dict[str, Tensor]:
    """Every operand and result, flat, named ``x0 x1 ... y0 y1 ...``."""
    named = {f"x{i}": held(tensor) for i, tensor in enumerate(spec.operands)}
    return named | {f"y{i}": held(tensor) for i, tensor in enumerate(spec.results)}


def row_major(shape: Sequence[int]) -> Strides:
    """The strides, in elements, of a contiguous tensor."""
    return tuple(accumulate(reversed(shape[1:]), mul, initial=1))[::-1] if shape else ()


def broadcast_strides(shape: Sequence[int], to: Sequence[int]) -> Strides:
    """The strides that repeat a contiguous tensor of ``shape`` over the shape ``to``."""
    strides = [0 if n == 1 else s for n, s in zip(shape, row_major(shape), strict=True)]
    return (0,) * (len(to) - len(shape)) + tuple(strides)


def merge(shape: Sequence[int], *strides: Strides) -> tuple[tuple[int, ...], tuple[Strides, ...]]:
    """The same elements in as few axes as possible; at least one axis is left.

    Neighbours merge where, for every tensor, the outer stride spans the whole inner axis.
    """
    axes = [axis for axis in zip(shape, *strides, strict=True) if axis[0] != 1]
    merged: list[tuple[int, ...]] = []
    for size, *steps in axes:
        if merged and all(a == b * size for a, b in zip(merged[-1][1:], steps, strict=True)):
            merged[-1] = (merged[-1][0] * size, *steps)
        else:
            merged.append((size, *steps))
    merged = merged or [(1,) * (1 + len(strides))]
    sizes, *columns = zip(*merged, strict=True)
    return sizes, tuple(columns)


@contextmanager
def nest(sizes: Sequence[int]) -> Iterator[list[Any]]:
    """Loops over all of ``sizes``, the last one innermost; gives the loop variables."""
    with ExitStack() as stack:
        yield [stack.enter_context(T.serial(size)) if size != 1 else 0 for size in sizes]


def offset(indices: Sequence[Any], strides: Sequence[int], start: Any = 0) -> Any:
    """``start`` plus the sum of each index times its stride."""
    for index, stride in zip(indices, strides, strict=True):
        start = start + index * stride
    return start


def chunks(count: int, lanes: int, vectors: int, body: Callable[[Any, int], None]) -> None:
    """``body(start, vectors)`` until all of ``count`` >= ``lanes`` elements are covered.

    The last vector may cover elements again: ``body`` must not mind.
    """
    whole = count // (lanes * vectors)
    if whole:
        with T.serial(whole) as i:
            body(i * (lanes * vectors), vectors)
    done = whole * lanes * vectors
    if left := (count - done) // lanes:
        with T.serial(left) as i:
            body(done + i * lanes, 1)
    if count % lanes:
        body(T.int32(count - lanes), 1)


def read(buffer: Any, start: Any, stride: int, lanes: int) -> Any:
    """``lanes`` elements; a stride of 0 repeats one, a stride of 1 is a vector load."""
    return broadcast(buffer[start], lanes) if stride == 0 else buffer[span(start, lanes)]


def widened(value: Any, dtype: str, lanes: int, to: str = "") -> Any:
    """A loaded value of the IR's ``dtype`` as it is computed with."""
    to = to or COMPUTED[dtype]
    return value if DTYPES[dtype] == to else cast(to, value, lanes)


def narrowed(value: Any, dtype: str, lanes: int) -> Any:
    """A computed value as it is held in memory; bools must be 0 or 1."""
    held_as = "int8" if dtype == "bool" else DTYPES[dtype]
    return cast(held_as, value, lanes)


def write(buffer: Any, value: Any, dtype: str, start: Any, lanes: int) -> None:
    store(buffer, narrowed(value, dtype, lanes), span(start, lanes))


def number(kind: str, value: float, lanes: int) -> Any:
    """A constant of the computed dtype ``kind`` in every lane."""
    return broadcast(getattr(T, kind)(value if kind.startswith("float") else int(value)), lanes)


def is_nan(value: Any, lanes: int) -> Any:
    """Whether a float32 is NaN, whatever TVM believes of NaN."""
    bits = T.reinterpret(dtype_of("int32", lanes), value)
    magnitude = T.bitwise_and(bits, number("int32", 0x7FFFFFFF, lanes))
    return magnitude > number("int32", 0x7F800000, lanes)


def vector_elements(dtype: str, float_lanes: int) -> int:
    """How many elements of ``dtype`` fill a vector of ``float_lanes`` floats; at least one."""
    return max(1, 4 * float_lanes // _BYTES[dtype]) if float_lanes > 1 else 1
