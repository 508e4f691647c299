"""What TVM would miscompile is refused before it is compiled."""

from __future__ import annotations

import pytest

from butterflyc.compiler.errors import Damaged
from butterflyc.compiler.lower.elf import undefined_symbols
from butterflyc.compiler.lower.tir import ForbiddenInKernel, build_object, lower
from butterflyc.kernels.layout import pack
from butterflyc.kernels.record import Tensor
from butterflyc.kernels.tir import T, function, span, store

from .harness import TARGETS

TARGET = TARGETS["scalar"]


def one_store(value, dtype="f32"):
    """A function of x and y that stores ``value(x)`` into y."""
    with function("f", {"x": Tensor(dtype, (8,)), "y": Tensor(dtype, (8,))}) as f:
        x, y = f.buffers
        store(y, value(x[span(0, 8)]), span(0, 8))
    return f.result


def test_object_defines_its_functions_and_asks_for_nothing():
    """A plain kernel's object has no undefined symbol."""
    content = build_object({"f": one_store(lambda x: x * x)}, TARGET)
    assert undefined_symbols(content) == set()
    assert b"TVMBackend" not in content


def test_magic_number_rounding_is_refused():
    """(v + c) - c is an error that names the kernel and lanes.round."""
    magic = T.broadcast(T.float32(1.5 * 2**23), 8)
    with pytest.raises(ForbiddenInKernel, match=r"kernel f adds.*(\n.*)*lanes\.round"):
        lower(one_store(lambda x: (x + magic) - magic), TARGET)


def test_wide_unsigned_arithmetic_is_refused():
    """Arithmetic in uint32 is an error, in uint16 it is not."""

    def doubled(kind):
        def value(x):
            word = T.Cast(f"{kind}x8", x)
            return T.Cast("int32x8", word + word)

        return one_store(value, "i32")

    lower(doubled("uint16"), TARGET)
    with pytest.raises(ForbiddenInKernel, match="computes in uint32x8"):
        lower(doubled("uint32"), TARGET)


def test_large_stack_buffers_are_refused():
    """A buffer beyond 4 KiB must be the kernel's scratch."""

    def build(size):
        with function("f", {"x": Tensor("f32", (size,)), "y": Tensor("f32", (size,))}) as f:
            x, y = f.buffers
            kept = T.alloc_buffer((size,), "float32")
            with T.serial(size) as i:
                store(kept, x[i], i)
            with T.serial(size) as i:
                store(y, kept[size - 1 - i], i)
        return f.result

    lower(build(1024), TARGET)
    with pytest.raises(ForbiddenInKernel, match="keeps 4100 bytes"):
        lower(build(1025), TARGET)


def test_library_calls_are_refused():
    """A kernel that needs libm does not build, and the function is named."""
    with pytest.raises(ForbiddenInKernel, match="call expf"):
        build_object({"f": one_store(T.exp)}, TARGET)


def test_a_damaged_object_is_named():
    """Half an object and no object at all are errors that say so."""
    content = build_object({"f": one_store(lambda x: x * x)}, TARGET)
    with pytest.raises(Damaged, match="cut short"):
        undefined_symbols(content[: len(content) // 2])
    with pytest.raises(Damaged, match="not an ELF object"):
        undefined_symbols(b"!<arch>")


def test_an_unknown_layout_is_named():
    """The error says which layout, and where its file would be."""
    with pytest.raises(ValueError, match=r"unknown layout 'plaid8'.*layout_<family>\.py"):
        pack("plaid8", None)


def test_a_function_has_no_result_before_it_is_closed():
    """Asking an open function for its TIR is an error."""
    with function("f", {"x": Tensor("f32", (1,))}) as f:
        with pytest.raises(RuntimeError, match="no result before"):
            _ = f.result
        store(f.buffers[0], T.float32(0), 0)


def test_two_builds_are_the_same_bytes():
    """Building twice gives the same object."""
    function = one_store(lambda x: x * x)
    assert build_object({"f": function}, TARGET) == build_object({"f": function}, TARGET)
