"""TIR functions, lowered; and to one object file with a plain C interface, through TVM and LLVM.

A function becomes ``void name(T0 *, T1 *, ...)``: one pointer a parameter, in order, none of them
overlapping. The object refers to nothing of TVM and to no library: memcpy, memset and, on
chips without the instructions, the compiler's own arithmetic helpers are all that it may ask for.
TVM is imported when a function here is first called.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...kernels.tir import LazyModule
from ..errors import ButterflycError
from .elf import undefined_symbols

__all__ = [
    "ForbiddenInKernel",
    "TargetDescription",
    "build_object",
    "check",
    "dtype_of",
    "lower",
    "lower_for_c",
    "nodes_of",
    "undefined_symbols",
]

tvm: Any = LazyModule("tvm")
tvm_ffi: Any = LazyModule("tvm_ffi")
tir: Any = LazyModule("tvm.tirx")
s_tir: Any = LazyModule("tvm.s_tir.transform")

# TVM's own description: {"kind": "llvm", "mtriple": ..., "mcpu": ..., "mattr": [...]}.
TargetDescription = Mapping[str, Any]

# The largest buffer that a function may keep on its stack: a microcontroller's task often has
# 8 KiB in all. Accumulators count too, though LLVM keeps them in registers.
STACK_BYTES = 4096
# LLVM makes these out of loops, and every C environment has them.
C_SYMBOLS = frozenset({"memcpy", "memset", "memmove"})


class ForbiddenInKernel(ButterflycError):
    """A kernel's TIR holds something that TVM compiles wrongly, or that a target cannot carry."""

    code = "BF998"


def lower(function: Any, target: TargetDescription) -> Any:
    """The module of one function after all TIR passes: what code generators print."""
    return _lower(_module({str(function.attrs["global_symbol"]): function}), target)


def lower_for_c(function: Any) -> Any:
    """One function as ``emit_c`` prints it: scalar, with the names and buffers it was given."""
    lowered = _lower(_module({str(function.attrs["global_symbol"]): function}), {"kind": "c"})
    (result,) = lowered.functions.values()
    return result


def build_object(functions: Mapping[str, Any], target: TargetDescription) -> bytes:
    """One ELF object that defines every function under its name."""
    tvm_target = tvm.target.Target(dict(target))
    generate = tvm.get_global_func(f"target.build.{tvm_target.kind.name}")
    module = generate(_lower(_module(functions), target), tvm_target)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.o"
        module.write_to_file(str(path), "o")
        content = path.read_bytes()
    # Two underscores mark the compiler's own support library: __addsf3, __aeabi_fadd ...
    foreign = {
        symbol
        for symbol in undefined_symbols(content) - C_SYMBOLS
        if not symbol.startswith("__") or "tvm" in symbol
    }
    if foreign:
        raise ForbiddenInKernel(
            f"kernels {', '.join(functions)} call {', '.join(sorted(foreign))}",
            help="write the function out in TIR: see kernels/pointwise_math.py",
        )
    return content


def check(name: str, function: Any) -> None:
    """Refuse what TVM would compile to something else than it says.

    TVM takes for granted that 32- and 64-bit unsigned arithmetic does not wrap, and folds
    (v + c) - c to v, which undoes rounding by a magic number.
    """
    arithmetic = (tir.Add, tir.Sub, tir.Mul, tir.Div, tir.Mod, tir.FloorDiv, tir.FloorMod)
    for node in nodes_of(function.body):
        if isinstance(node, arithmetic) and dtype_of(node).startswith(("uint32", "uint64")):
            raise ForbiddenInKernel(
                f"kernel {name} computes in {dtype_of(node)}: {node}",
                help="TVM assumes that it never wraps; use int32, or uint16 and narrower",
            )
        if isinstance(node, tir.Sub) and _is_magic_rounding(node):
            raise ForbiddenInKernel(
                f"kernel {name} adds a constant and takes it away again: {node}",
                help="TVM folds this to its operand; round with lanes.round",
            )


def _is_magic_rounding(node: Any) -> bool:
    if not (isinstance(node.a, tir.Add) and dtype_of(node).startswith("float")):
        return False
    constants = (tir.FloatImm, tir.Broadcast)
    terms = (node.a.a, node.a.b)
    return any(isinstance(t, constants) and tvm_ffi.structural_equal(t, node.b) for t in terms)


def _check_stack(name: str, function: Any) -> None:
    for node in nodes_of(function.body):
        if not isinstance(node, tir.AllocBuffer):
            continue
        if not all(isinstance(extent, tir.IntImm) for extent in node.buffer.shape):
            raise ForbiddenInKernel(
                f"kernel {name} keeps a buffer of shape {node.buffer.shape} on its stack",
                help="its size must be a number: make one kernel a shape",
            )
        kind = tvm.DataType(node.buffer.dtype)
        elements = prod(int(extent) for extent in node.buffer.shape)
        size = elements * -(-kind.bits * kind.lanes // 8)
        if size > STACK_BYTES:
            raise ForbiddenInKernel(
                f"kernel {name} keeps {size} bytes on its stack, of {STACK_BYTES} allowed",
                help="declare the buffer in the kernel's `scratch`",
            )


def nodes_of(body: Any) -> list[Any]:
    """Every node of a statement or expression."""
    found: list[Any] = []
    tvm_ffi.structural_walk(body, found.append)
    return found


def dtype_of(node: Any) -> str:
    """TVM's name of the type of an expression: ``int32``, ``float32x8``."""
    return str(node.ty.dtype)


def _module(functions: Mapping[str, Any]) -> Any:
    for name, function in functions.items():
        check(name, function)
    return tvm.IRModule(dict(functions))


def _lower(module: Any, target: TargetDescription) -> Any:
    bound = tvm.target.Target(dict(target))
    bound = bound.with_host(bound)
    with bound:
        lowered = tvm.transform.Sequential(_passes(bound))(module)
    for variable, function in lowered.functions.items():
        _check_stack(variable.name_hint, function)
    return lowered


def _passes(target: Any) -> list[Any]:
    """TVM's own order for CPUs, with raw pointers where it would pack arguments.

    What is printed as C keeps its storage and names, since a C compiler merges both again; vectors
    and raw pointers are for machine code only.
    """
    printed = target.kind.name == "c"

    def machine_code(*passes: Any) -> tuple[Any, ...]:
        return () if printed else passes

    return [
        tir.transform.BindTarget(target),
        s_tir.CanonicalizeLoop(),
        s_tir.LowerInitBlock(),
        s_tir.PlanAndUpdateBufferAllocationLocation(),
        s_tir.ConvertBlocksToOpaque(),
        s_tir.CompactBufferAllocation(),
        s_tir.LowerMatchBuffer(),
        s_tir.StmtSimplify(),
        s_tir.AnnotateIrregularLoop(),
        s_tir.LowerOpaqueBlock(),
        tir.transform.FlattenBuffer(),
        tir.transform.NarrowDataType(32),
        s_tir.LoopPartition(),
        *machine_code(
            tir.transform.VectorizeLoop(True),
            # In C this would read a float array through an int pointer.
            tir.transform.StorageRewrite(),
        ),
        s_tir.HoistIfThenElse(),
        tir.transform.UnrollLoop(),
        s_tir.RenormalizeSplitPattern(),
        tir.transform.StmtSimplify(),
        tir.transform.RemoveNoOp(),
        s_tir.RewriteUnsafeSelect(),
        *machine_code(tir.transform.CommonSubexprElim()),
        tir.transform.VerifyMemory(),
        *machine_code(_raw_pointer_parameters()),
        # Not LowerTVMBuiltin: allocations stay on the stack, bounded by STACK_BYTES.
        tir.transform.LowerIntrin(),
    ]


@cache
def _raw_pointer_parameters() -> Any:
    """A TVM pass: each buffer parameter becomes a raw pointer in the same position."""

    def convert(function: Any) -> Any:
        parameters, declarations = [], []
        for parameter in function.params:
            pointer = parameter
            if tir.is_buffer_var(parameter):
                element = tvm.ir.PrimType(parameter.ty.dtype.dtype)
                pointer = tir.Var(parameter.name, tvm.ir.PointerType(element))
                declarations.append(tir.DeclBuffer(parameter, data=pointer))
            parameters.append(pointer)
        body = tir.SeqStmt([*declarations, function.body]) if declarations else function.body
        return tir.PrimFunc(parameters, body, function.ret_type, function.attrs, function.span)

    def run(module: Any, _context: Any) -> Any:
        converted = {name: convert(function) for name, function in module.functions.items()}
        return tvm.IRModule(converted, attrs=module.attrs)

    return tvm.transform.module_pass(run, opt_level=0, name="RawPointerParameters")
