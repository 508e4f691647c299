"""Building TIR functions from ordinary Python: statements go into the frame that is open.

``T`` is TVM's IR builder, imported at its first use, so that kernel records can be listed without
TVM. TIR expressions are typed ``Any``: TVM carries no static types for them.

Two facts of TIR shape every template. An expression is a tree: a Python variable used twice is
computed twice, so a value used twice is named with ``let``. A Python ``for`` unrolls; a loop that
stays a loop is ``with T.serial(n) as i``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from math import prod
from typing import Any

from .layout import storage
from .record import Spec, Tensor


class LazyModule:
    """A module that is imported when one of its names is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(import_module(self._name), attribute)
        setattr(self, attribute, value)
        return value


T: Any = LazyModule("tvm.tirx.script.builder")
_ir_builder: Any = LazyModule("tvm.script.ir_builder")

DISTINCT = "tirx.noalias"  # the attribute of a function whose buffers do not overlap
DTYPES = {
    "bool": "bool",
    "i8": "int8",
    "u8": "uint8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "f32": "float32",
    "f64": "float64",
}


class Function:
    """A function under construction: ``buffers`` in parameter order; ``result`` once closed."""

    def __init__(self, buffers: Sequence[Any], numbers: Mapping[str, Any]) -> None:
        self.buffers = tuple(buffers)
        self._numbers = numbers
        self._result: Any = None

    def number(self, spec: Spec, name: str) -> Any:
        """An attribute of ``spec``: its value, or the parameter that will hold it."""
        return self._numbers[name] if name in self._numbers else spec.attribute(name)

    @property
    def result(self) -> Any:
        """The TIR ``PrimFunc``."""
        if self._result is None:
            raise RuntimeError("a TIR function has no result before its `with` block ends")
        return self._result


@contextmanager
def function(
    name: str, parameters: Mapping[str, Tensor], numbers: Sequence[str] = ()
) -> Iterator[Function]:
    """Open a function of contiguous, non-overlapping buffers; the body is the ``with`` block.

    A packed tensor is declared as it is stored (``layout.storage``); a scalar has shape ``[1]``.
    ``numbers`` are int32 parameters behind the buffers.
    """
    with _ir_builder.IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"global_symbol": name, DISTINCT: True})
            stored = {key: storage(tensor) for key, tensor in parameters.items()}
            buffers = [
                T.arg(k, T.Buffer(t.shape or (1,), DTYPES[t.dtype])) for k, t in stored.items()
            ]
            opened = Function(buffers, {key: T.arg(key, T.int32()) for key in numbers})
            yield opened
        opened._result = builder.get()


def rows_of(tensor: Tensor) -> Tensor:
    """The same memory as a matrix: every axis but the last one merged."""
    if not tensor.shape:
        return Tensor(tensor.dtype, (1, 1), tensor.layout)
    return Tensor(tensor.dtype, (prod(tensor.shape[:-1]), tensor.shape[-1]), tensor.layout)


def dtype_of(base: str, lanes: int) -> str:
    """TVM's name of a vector type: ``float32x8``; plain ``float32`` for one lane."""
    return base if lanes == 1 else f"{base}x{lanes}"


def span(start: Any, lanes: int) -> Any:
    """The index of ``lanes`` consecutive elements from ``start``."""
    return start if lanes == 1 else T.ramp(start, 1, lanes)


def broadcast(value: Any, lanes: int) -> Any:
    return value if lanes == 1 else T.broadcast(value, lanes)


def constant(value: float, lanes: int) -> Any:
    """A float32 constant in every lane."""
    return broadcast(T.float32(value), lanes)


def cast(base: str, value: Any, lanes: int) -> Any:
    return T.Cast(dtype_of(base, lanes), value)


def llvm(dtype: str, intrinsic: str, *arguments: Any) -> Any:
    """A call of a pure LLVM intrinsic. Only lanes records of a target may use it."""
    return T.call_llvm_pure_intrin(dtype, T.llvm_lookup_intrinsic_id(intrinsic), *arguments)


def store(buffer: Any, value: Any, *indices: Any) -> None:
    T.buffer_store(buffer, value, list(indices))


class Registers:
    """``count`` vectors that live in registers.

    They are one small allocation that is indexed by constants only, which LLVM promotes. Printed C
    keeps the name.
    """

    def __init__(
        self, count: int, lanes: int, dtype: str = "float32", name: str | None = None
    ) -> None:
        self.count = count
        self.lanes = lanes
        self._buffer = T.alloc_buffer((count * lanes,), dtype)
        if name:
            _ir_builder.IRBuilder.name(name, self._buffer)

    def __getitem__(self, index: int) -> Any:
        return self._buffer[span(index * self.lanes, self.lanes)]

    def __setitem__(self, index: int, value: Any) -> None:
        store(self._buffer, value, span(index * self.lanes, self.lanes))

    def lane(self, index: int, lane: int) -> Any:
        """One element of vector ``index``."""
        return self._buffer[index * self.lanes + lane]


def let(value: Any, lanes: int, dtype: str = "float32") -> Any:
    """Compute ``value`` once, here, and return a name for it."""
    named = Registers(1, lanes, dtype)
    named[0] = value
    return named[0]


def named(name: str, value: Any) -> Any:
    """Compute the scalar ``value`` once, here, and return it under a name that printed C keeps."""
    return _ir_builder.IRBuilder.name(name, T.bind(value))


@contextmanager
def loop(name: str, count: Any) -> Iterator[Any]:
    """A loop over 0 .. count - 1, whose variable printed C calls ``name``."""
    with T.serial(count) as i:
        yield _ir_builder.IRBuilder.name(name, i)


def lane(vector: Any, index: int, lanes: int) -> Any:
    """Element ``index`` of ``vector`` as a scalar."""
    return vector if lanes == 1 else T.Shuffle([vector], [index])


def reduce_lanes(vector: Any, lanes: int, combine: Callable[[Any, Any], Any]) -> Any:
    """One scalar out of ``lanes`` (a power of two) by halves: a fixed order on every target."""
    while lanes > 1:
        lanes //= 2
        low, high = range(lanes), range(lanes, 2 * lanes)
        vector = combine(T.Shuffle([vector], list(low)), T.Shuffle([vector], list(high)))
    return vector


def reduce_vectors(vectors: Sequence[Any], combine: Callable[[Any, Any], Any]) -> Any:
    """Combine a few vectors pairwise, in a fixed order."""
    while len(vectors) > 1:
        odd = list(vectors[len(vectors) // 2 * 2 :])
        pairs = list(pairwise(vectors))[::2]
        vectors = [combine(a, b) for a, b in pairs] + odd
    return vectors[0]


def load_lanes(
    read: Callable[[Any, int], Any], start: Any, valid: int, lanes: int, fill: Any
) -> Any:
    """``read(start, lanes)`` where only the first ``valid`` elements exist: the rest is ``fill``.

    ``read(i, n)`` reads n consecutive elements from i; ``fill`` is a scalar.
    """
    if valid == lanes:
        return read(start, lanes)
    scalars = [read(start + i, 1) if i < valid else fill for i in range(lanes)]
    return T.Shuffle(scalars, list(range(lanes)))


def store_lanes(
    write: Callable[[Any, Any, int], None],
    value: Any,
    start: Any,
    valid: int,
    lanes: int,
    dtype: str = "float32",
) -> None:
    """``write(value, start, lanes)``, or its first ``valid`` elements one by one."""
    if valid == lanes:
        write(value, start, lanes)
        return
    named = Registers(1, lanes, dtype)
    named[0] = value
    for i in range(valid):
        write(named.lane(0, i), start + i, 1)


def mask_lanes(vector: Any, valid: int, lanes: int, fill: float = 0.0) -> Any:
    """``vector`` with ``fill`` in every lane from ``valid`` on."""
    if valid == lanes:
        return vector
    other = constant(fill, lanes)
    return T.Shuffle([vector, other], [i if i < valid else lanes + i for i in range(lanes)])


def row_blocks(rows: int, tile_rows: int) -> list[tuple[int, int, int]]:
    """``rows`` as (first row, number of blocks, rows a block), blocks of almost equal size.

    65 rows at 6 a tile are ten blocks of 6 and one of 5: no padding and no slow tail.
    """
    blocks = -(-rows // tile_rows)
    small, larger = divmod(rows, blocks)
    parts = [(0, larger, small + 1), (larger * (small + 1), blocks - larger, small)]
    return [part for part in parts if part[1]]


def block_sizes(rows: int, wanted: Iterable[int]) -> tuple[int, ...]:
    """The ``wanted`` rows a block, each as many as its largest block has: none means another."""
    return tuple(dict.fromkeys(row_blocks(rows, size)[0][2] for size in wanted))


def each_vector(count: int, lanes: int) -> Iterator[tuple[Any, int]]:
    """Loop over ``count`` elements, a vector at a time: yields (start, elements that exist there).

    The body is emitted inside the loop that is open at that moment.
    """
    whole, rest = divmod(count, lanes)
    if whole:
        with T.serial(whole) as i:
            yield i * lanes, lanes
    if rest:
        yield whole * lanes, rest
