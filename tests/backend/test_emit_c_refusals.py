"""What cannot be printed as C is refused, with the kernel's name and what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from butterflyc.compiler.lower.emit_c import emit, emit_header, lower_for_c
from butterflyc.compiler.lower.tir import ForbiddenInKernel, lower
from butterflyc.kernels.record import Tensor
from butterflyc.kernels.tir import Registers, T, function, named, span, store

F32 = {"x": Tensor("f32", (8,)), "y": Tensor("f32", (8,))}


def built(body: Callable[..., Any], name: str = "f") -> Any:
    """A function of two float buffers."""
    with function(name, F32) as f:
        body(*f.buffers)
    return f.result


def one_store(value: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda x, y: store(y, value(x), 0)


def view_as_integers(x: Any, y: Any) -> None:
    words = T.decl_buffer((8,), "int32", data=x.data)
    store(words, T.int32(1), 0)
    store(y, x[0], 0)


def view_of_the_second_half(x: Any, y: Any) -> None:
    half = T.decl_buffer((4,), "float32", data=x.data, elem_offset=4)
    store(y, half[0], 0)


def in_parallel(x: Any, y: Any) -> None:
    with T.parallel(8) as i:
        store(y, x[i], i)


def as_a_vector(x: Any, y: Any) -> None:
    with T.vectorized(8) as i:
        store(y, x[i], i)


def under_a_pragma(x: Any, y: Any) -> None:
    with T.attr(T.int32(0), "pragma_fast", T.int32(1)):
        store(y, x[0], 0)


def under_an_assertion(x: Any, y: Any) -> None:
    with T.Assert(x[0] > T.float32(0), "negative"):
        store(y, x[0], 0)


def four_registers(x: Any, y: Any) -> None:
    kept = Registers(1, 4)
    kept[0] = x[span(0, 4)]
    store(y, kept[0], span(0, 4))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (view_as_integers, "reinterprets memory"),
        (in_parallel, "not serial with step 1.*(\n.*)*T.serial"),
        (as_a_vector, "not serial with step 1"),
        (under_a_pragma, "holds an AttrStmt statement"),
        (under_an_assertion, "holds an AssertStmt statement"),
        (four_registers, r"holds a Ramp expression.*(\n.*)*`Lanes\(\)`"),
        (one_store(lambda x: T.float32(float("inf"))), "the constant inf, which C cannot write"),
        (one_store(lambda x: T.sqrt(x[0])), r"calls sqrtf, of .*(\n.*)*known are smlad"),
        (one_store(lambda x: T.truncmod(x[0], x[1])), "remainder of floats"),
        (one_store(lambda x: T.call_extern("float32", "memcpy", x[0])), "calls call_extern inside"),
        (one_store(lambda x: T.Cast("float32", T.Cast("float16", x[0]))), "of type float16"),
    ],
)
def test_refused_when_printed(body: Callable[..., Any], message: str) -> None:
    """The kernel is named, with what it holds that C is not printed from."""
    lowered = lower_for_c(built(body))
    with pytest.raises(ForbiddenInKernel, match=f"kernel f {message}|kernel f .*{message}"):
        emit([lowered])


def stack_of_unknown_size(x: Any, y: Any) -> None:
    count = named("count", T.Cast("int32", x[0]))
    kept = T.alloc_buffer((count,), "int32")
    with T.serial(count) as i:
        store(kept, i, i)
    with T.serial(count) as i:
        store(y, T.Cast("float32", kept[count - 1 - i]), i)


def unsigned_words(x: Any, y: Any) -> None:
    word = T.Cast("uint32", x[0])
    store(y, T.Cast("float32", word + word), 0)


def large_stack(x: Any, y: Any) -> None:
    kept = T.alloc_buffer((1025,), "float32")
    with T.serial(1025) as i:
        store(kept, x[i % 8], i)
    with T.serial(1025) as i:
        store(y, kept[1024 - i], i % 8)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (stack_of_unknown_size, "buffer of shape .* on its stack"),
        (unsigned_words, "computes in uint32"),
        (large_stack, "keeps 4100 bytes on its stack"),
    ],
)
def test_refused_when_lowered(body: Callable[..., Any], message: str) -> None:
    """What machine code may not hold, C may not either."""
    with pytest.raises(ForbiddenInKernel, match=f"kernel f .*{message}"):
        lower_for_c(built(body))


@pytest.mark.parametrize("name", ["int", "memcpy", "smlad", "a-b", "2nd"])
def test_names_that_c_has_no_use_for_are_refused(name: str) -> None:
    """A kernel is not called like a keyword or an extern, or like nothing that C can call."""
    lowered = lower_for_c(built(one_store(lambda x: x[0]), name))
    with pytest.raises(ForbiddenInKernel, match=f"kernel {name} cannot be a function"):
        emit_header([lowered], "F_H")


def test_two_kernels_of_one_name_are_refused() -> None:
    """A file defines each name once."""
    lowered = lower_for_c(built(one_store(lambda x: x[0])))
    with pytest.raises(ForbiddenInKernel, match="kernel f cannot be a function"):
        emit([lowered, lowered])


def test_only_what_was_lowered_for_c_is_printed() -> None:
    """Functions of raw pointers, and functions that were not lowered, are refused."""
    machine = lower(built(one_store(lambda x: x[0])), {"kind": "llvm"})
    (raw,) = machine.functions.values()
    with pytest.raises(ForbiddenInKernel, match=r"neither a buffer.*(\n.*)*lower_for_c"):
        emit([raw])
    with pytest.raises(ForbiddenInKernel, match="reinterprets memory"):
        emit([built(view_of_the_second_half)])
    with function("f", {"x": Tensor("f32", (4, 2))}) as f:
        store(f.buffers[0], T.float32(1), 1, 1)
    with pytest.raises(ForbiddenInKernel, match=r"x by 2 numbers(\n.*)*lower_for_c"):
        emit([f.result])
