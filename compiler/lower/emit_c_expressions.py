"""TIR expressions as C text, each with how tightly it binds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...kernels.tir import LazyModule
from .emit_c_names import Names
from .emit_c_types import (
    ATOM,
    BITS_OF_FLOATS,
    COMPARE,
    LOOSE,
    NARROW,
    PRODUCT,
    SHORT_TYPES,
    SUM,
    UNARY,
    c_type,
    literal,
)
from .externs import EXTERNS
from .tir import ForbiddenInKernel, dtype_of

ir: Any = LazyModule("tvm.ir")
tir: Any = LazyModule("tvm.tirx")

BINARY = {
    "Add": ("+", SUM),
    "Sub": ("-", SUM),
    "Mul": ("*", PRODUCT),
    "Div": ("/", PRODUCT),
    "Mod": ("%", PRODUCT),
    "LShift": ("<<", LOOSE),
    "RShift": (">>", LOOSE),
    "BitwiseAnd": ("&", LOOSE),
    "BitwiseOr": ("|", LOOSE),
    "BitwiseXor": ("^", LOOSE),
    "EQ": ("==", COMPARE),
    "NE": ("!=", COMPARE),
    "LT": ("<", COMPARE),
    "LE": ("<=", COMPARE),
    "GT": (">", COMPARE),
    "GE": (">=", COMPARE),
    "And": ("&&", LOOSE),
    "Or": ("||", LOOSE),
}
# What the operands of these must bind at least as tightly as.
OPERANDS = {LOOSE: (UNARY, UNARY), COMPARE: (SUM, SUM)}

Text = tuple[str, int]


class Expressions:
    """Prints expressions of one kernel; ``needs`` is the text that must stand above it."""

    def __init__(self, names: Names, externs: Mapping[str, str]) -> None:
        self.names = names
        self.externs = externs
        self.needs: list[str] = []

    @property
    def kernel(self) -> str:
        return self.names.kernel

    def refuse(self, what: str, help: str) -> ForbiddenInKernel:
        """The error that this kernel cannot be printed."""
        return ForbiddenInKernel(f"kernel {self.kernel} {what}", help=help)

    def type_of(self, node: Any) -> str:
        return c_type(dtype_of(node), self.kernel)

    def text(self, node: Any, at_least: int = LOOSE) -> str:
        """The expression, in brackets where it binds too loosely."""
        text, binds = self._expression(node)
        return text if binds >= at_least else f"({text})"

    def place(self, buffer: Any, indices: Sequence[Any], read: bool) -> str:
        """The element of a flat buffer, or the variable that is one."""
        root = self.names.root(buffer)
        if len(indices) != 1:
            raise self.refuse(
                f"indexes {root.name} by {len(indices)} numbers", "print what lower_for_c returned"
            )
        if root in self.names.scalars:
            return self.names.name(root)
        index, base = indices[0], self.names.name(root)
        if read and _is_looked_up(index):
            # gcc adds the constant in the loop, unless it has a pointer of its own.
            pointer = self.names.pointer(root, int(index.b))
            if pointer is not None:
                index, base = index.a, pointer
        if isinstance(index, tir.Cast) and dtype_of(index.value) in NARROW:
            index = index.value  # C widens it anyway
        return f"{base}[{self.text(index)}]"

    def call(self, function: str, arguments: Sequence[Any], pure: bool = False) -> str:
        """A call of an extern function; a ``pure`` one only reads what addresses it gets."""
        if function not in self.externs:
            raise self.refuse(
                f"calls {function}, of which no C text is known",
                f"write it out in TIR, or give its text as an extern; known are "
                f"{', '.join(self.externs)}",
            )
        self.needs.append(self.externs[function])
        if pure:
            return f"{function}({', '.join(map(self._read, arguments))})"
        return self._called(function, arguments)

    def _read(self, argument: Any) -> str:
        """An argument of a function that changes nothing."""
        if str(getattr(getattr(argument, "op", None), "name", "")).endswith("address_of"):
            load = argument.args[0]
            self.names.load(load.source)
            return f"&{self.place(load.source, load.indices, read=False)}"
        return self.text(argument)

    def _called(self, function: str, arguments: Sequence[Any]) -> str:
        return f"{function}({', '.join(map(self.text, arguments))})"

    def _expression(self, node: Any) -> Text:
        match node:
            case tir.IntImm() | tir.FloatImm():
                text = literal(node.value, dtype_of(node), self.kernel)
                return text, UNARY if text[0] == "-" else ATOM
            case ir.TensorLoad():
                self.names.load(node.source)
                return self.place(node.source, node.indices, read=True), ATOM
            case ir.Var():
                self.names.read.add(node)
                return self.names.name(node), ATOM
            case tir.Cast():
                return self._cast(node)
            case tir.Select():
                return self._choice(node.condition, node.true_value, node.false_value)
            case tir.Min() | tir.Max():
                helper = self._extremum(type(node).__name__.lower(), dtype_of(node))
                return self._called(helper, [node.a, node.b]), ATOM
            case tir.Not():
                return "!" + self.text(node.a, UNARY), UNARY
            case tir.BitwiseNot():
                if dtype_of(node) == "bool":
                    return "!" + self.text(node.a, UNARY), UNARY
                return self._cut("~" + self.text(node.a, UNARY), UNARY, dtype_of(node))
            case ir.Call():
                return self._operator(node)
        if type(node).__name__ in BINARY:
            return self._binary(node)
        raise self.refuse(
            f"holds a {type(node).__name__} expression: {node}",
            "C code is scalar: build the kernel with `Lanes()`, and name values by `named`",
        )

    def _cast(self, node: Any) -> Text:
        if dtype_of(node) == "bool":
            zero = literal(0, dtype_of(node.value), self.kernel)
            return f"{self.text(node.value, SUM)} != {zero}", COMPARE
        return f"({self.type_of(node)}){self.text(node.value, UNARY)}", UNARY

    def _choice(self, condition: Any, yes: Any, no: Any) -> Text:
        parts = [self.text(part, SUM) for part in (condition, yes, no)]
        return "{} ? {} : {}".format(*parts), LOOSE

    def _extremum(self, kind: str, dtype: str) -> str:
        """The helper that computes each operand once."""
        kept = c_type(dtype, self.kernel)
        name, sign = f"{kind}_{SHORT_TYPES[dtype]}", "<" if kind == "min" else ">"
        self.needs.append(
            f"static inline {kept} {name}({kept} a, {kept} b) {{ return a {sign} b ? a : b; }}"
        )
        return name

    def _cut(self, text: str, binds: int, dtype: str) -> Text:
        """``text`` cut back to an 8- or 16-bit type, where C computed it in int."""
        if dtype in NARROW or (dtype == "bool" and binds != COMPARE):
            return f"({c_type(dtype, self.kernel)})({text})", UNARY
        return text, binds

    def _binary(self, node: Any) -> Text:
        kind, dtype = type(node).__name__, dtype_of(node)
        sign, binds = BINARY[kind]
        a, b = node.a, node.b
        if kind == "Mod" and dtype in BITS_OF_FLOATS:
            raise self.refuse(
                f"takes a remainder of floats: {node}", "C's % is for integers: divide and multiply"
            )
        if kind == "Add" and isinstance(b, tir.IntImm) and -(2**31) < int(b) < 0:
            sign, b = "-", tir.IntImm(dtype, -int(b))
        if kind == "Mul" and isinstance(b, tir.IntImm) and int(b) == -1:
            return self._cut("-" + self.text(a, ATOM), UNARY, dtype)
        at_least = OPERANDS.get(binds, (binds, binds + 1))
        left, right = self.text(a, at_least[0]), self.text(b, at_least[1])
        if kind == "LShift":
            # The left shift of a negative int is undefined.
            wide = "uint64_t" if dtype.endswith("int64") else "uint32_t"
            return f"({self.type_of(node)})(({wide}){left} << {right})", UNARY
        if kind == "Mul" and dtype == "uint16":
            # 65535 * 65535 is more than an int holds.
            left = f"(uint32_t){self.text(a, UNARY)}"
        if kind in ("And", "Or"):
            return f"{left} {sign} {right}", binds
        return self._cut(f"{left} {sign} {right}", binds, dtype)

    def _operator(self, node: Any) -> Text:
        name = str(getattr(node.op, "name", node.op)).split(".")[-1]
        match name:
            case "if_then_else":
                return self._choice(*node.args)
            case "call_pure_extern":
                return self.call(str(node.args[0].value), node.args[1:], pure=True), ATOM
            case "likely":
                return self._expression(node.args[0])
            case "reinterpret":
                helper = self._reinterpret(dtype_of(node.args[0]), dtype_of(node))
                return self._called(helper, node.args), ATOM
            case "address_of":
                load = node.args[0]
                self.names.address(load.source)
                return f"&{self.place(load.source, load.indices, read=False)}", UNARY
        raise self.refuse(
            f"calls {name} inside an expression",
            "there may stand if_then_else, reinterpret, likely, address_of and call_pure_extern",
        )

    def _reinterpret(self, source: str, wanted: str) -> str:
        """The helper that reads the bits of one type as another of the same size."""
        a, b = c_type(source, self.kernel), c_type(wanted, self.kernel)
        name = f"{SHORT_TYPES[wanted]}_bits_of_{SHORT_TYPES[source]}"
        self.needs += [
            EXTERNS["memcpy"],
            f"static inline {b} {name}({a} a)\n"
            f"{{\n    {b} b;\n    memcpy(&b, &a, sizeof b);\n    return b;\n}}",
        ]
        return name


def _is_looked_up(index: Any) -> bool:
    return (isinstance(index, tir.Add) and isinstance(index.b, tir.IntImm)) and isinstance(
        index.a, tir.Cast
    )
