"""Lowered TIR as C99 that a person can read: scalars, <stdint.h>, no library but memcpy and memset.

Integer kernels give the same bits from every compiler. Signed 32- and 64-bit arithmetic must not
overflow, as in machine code made through TVM. 8- and 16-bit types wrap as printed here, but TVM
simplifies as if they did not, and as if a cast to them kept a value whose range it knows: kernels
must not count on either. Buffers do not overlap, and right shifts of negative numbers must be
arithmetic, which every compiler we know makes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from ...kernels.tir import DISTINCT, LazyModule
from .emit_c_expressions import BINARY, Expressions
from .emit_c_names import Names
from .emit_c_types import CLOSE_EXTERN_C, OPEN_EXTERN_C, PRELUDE, RESERVED, SUM, c_type
from .externs import EXTERNS
from .tir import ForbiddenInKernel, dtype_of, lower_for_c, nodes_of

__all__ = ["emit", "emit_header", "lower_for_c"]

ir: Any = LazyModule("tvm.ir")
tir: Any = LazyModule("tvm.tirx")

INDENT = "    "
LINE = 100
BREAK_BEFORE = frozenset({"?", ":", *(sign for sign, _ in BINARY.values())})


def emit(functions: Sequence[Any], externs: Mapping[str, str] = EXTERNS) -> str:
    """A .c file of the functions, in order, each as ``lower_for_c`` returned it.

    ``externs`` is the C text that defines, or includes, each function that a kernel calls by name.
    """
    printed = _print(functions, externs)
    # Each text once, in the order in which it is first needed.
    needs = list(dict.fromkeys(text for function in printed for text in function.needs))
    bodies = "\n".join(function.code for function in printed)
    return "\n".join([PRELUDE, *(f"{text}\n" for text in needs), OPEN_EXTERN_C, bodies]) + (
        f"\n{CLOSE_EXTERN_C}"
    )


def emit_header(functions: Sequence[Any], guard: str, externs: Mapping[str, str] = EXTERNS) -> str:
    """A .h file that declares the functions to C and C++."""
    prototypes = "".join(f"{function.prototype};\n" for function in _print(functions, externs))
    parts = "\n".join([PRELUDE, OPEN_EXTERN_C, prototypes, CLOSE_EXTERN_C])
    return f"#ifndef {guard}\n#define {guard}\n\n{parts}\n#endif\n"


def _print(functions: Sequence[Any], externs: Mapping[str, str]) -> list[_Function]:
    symbols = [str(function.attrs["global_symbol"]) for function in functions]
    for symbol in symbols:
        usable = re.fullmatch(r"[A-Za-z]\w*", symbol, flags=re.ASCII)
        if not usable or symbol in RESERVED or symbol in externs or symbols.count(symbol) > 1:
            raise ForbiddenInKernel(
                f"kernel {symbol} cannot be a function of that name in C",
                help="build it under a name of letters, digits and _ that nothing else has",
            )
    forbidden = frozenset({*symbols, *externs})
    return [_settled(function, forbidden, externs) for function in functions]


def _settled(function: Any, forbidden: frozenset[str], externs: Mapping[str, str]) -> _Function:
    """The function printed without what nobody reads; what is stored once is a constant.

    TVM leaves variables without a use behind, and what they were computed from may then have none.
    """
    dead: set[Any] = set()
    once: set[Any] = set()
    while True:
        printed = _Function(function, forbidden, externs, dead, once)
        names = printed.names
        unread = names.local - names.read
        stored_once = {b for b in names.scalars - names.addressed if names.stores.get(b) == 1}
        if not unread and stored_once == once:
            return printed
        dead |= unread
        once = stored_once


class _Function(Expressions):
    """One function: its ``prototype``, its whole ``code``, and what it ``needs`` above it."""

    def __init__(
        self,
        function: Any,
        forbidden: frozenset[str],
        externs: Mapping[str, str],
        dead: set[Any],
        once: set[Any],
    ) -> None:
        super().__init__(Names(str(function.attrs["global_symbol"]), forbidden), externs)
        self._dead = dead
        self._once = once
        for parameter in function.params:
            if not (tir.is_buffer_var(parameter) or isinstance(parameter.ty, ir.PrimType)):
                raise self.refuse(
                    f"has the parameter {parameter.name}, which is neither a buffer nor a number",
                    "print what lower_for_c returned",
                )
            self.names.parameter(parameter)
        body = self._block(function.body)
        self.prototype = self._prototype(DISTINCT in function.attrs)
        names = self.names
        used = names.read | set(names.stores)
        unused = [f"(void){names.name(p)};" for p in names.parameters if p not in used]
        head = [*self._shapes(), *self.prototype.split("\n"), "{"]
        first = [INDENT + line for line in [*unused, *names.pointers()]]
        lines = [*head, *first, *body, "}"]
        self.code = "".join(f"{part}\n" for line in lines for part in _fitted(line))

    def _prototype(self, distinct: bool) -> str:
        restrict = "RESTRICT " if distinct else ""
        parts = []
        for parameter in self.names.parameters:
            name = self.names.name(parameter)
            if tir.is_buffer_var(parameter):
                const = "" if parameter in self.names.stores else "const "
                kept = c_type(str(parameter.dtype), self.kernel)
                parts.append(f"{const}{kept} *{restrict}{name}")
            else:
                parts.append(f"{self.type_of(parameter)} {name}")
        head = f"void {self.kernel}("
        line = f"{head}{', '.join(parts) or 'void'})"
        return line if len(line) < LINE else head + (",\n" + " " * len(head)).join(parts) + ")"

    def _shapes(self) -> list[str]:
        """A comment that says the shape of every buffer."""
        buffers = [p for p in self.names.parameters if tir.is_buffer_var(p)]
        shapes = [self.names.name(b) + "".join(f"[{n}]" for n in b.shape) for b in buffers]
        return [f"/* {', '.join(shapes)} */"] if shapes else []

    def _block(self, body: Any) -> list[str]:
        with self.names.block():
            parts = body.seq if isinstance(body, tir.SeqStmt) else [body]
            return [INDENT + line for line in self._sequence(parts)]

    def _nested(self, head: str, body: Any) -> list[str]:
        return [head + " {", *self._block(body), "}"]

    def _sequence(self, parts: Sequence[Any]) -> list[str]:
        for part in parts:
            if isinstance(part, tir.DeclBuffer):
                self.names.view(part.buffer, _viewed(part))
        alive = [p for p in parts if not isinstance(p, tir.DeclBuffer) and not self._is_dead(p)]
        lines: list[str] = []
        waiting = set()
        for at, part in enumerate(alive):
            rest = alive[at + 1 :]
            if isinstance(part, tir.AllocBuffer) and self._is_set_first(part.buffer, rest):
                waiting.add(part.buffer)
            elif isinstance(part, tir.BufferStore) and self.names.root(part.buffer) in waiting:
                waiting.remove(self.names.root(part.buffer))
                lines.append(self._initialised(part))
            else:
                lines += self._statement(part)
        return lines

    def _is_dead(self, statement: Any) -> bool:
        """It only concerns what nobody reads. Values have no effects, so they may go too."""
        match statement:
            case tir.Bind():
                return statement.var in self._dead
            case tir.AllocBuffer():
                return statement.buffer in self._dead
            case tir.BufferStore():
                return self.names.root(statement.buffer) in self._dead
        return False

    def _is_set_first(self, buffer: Any, following: Sequence[Any]) -> bool:
        """A scalar's first use is that it is set, in the block that it was declared in."""

        def uses(node: Any) -> bool:
            return any(self.names.root(used) == buffer for used in _buffers(node))

        first = next(filter(uses, following), None)
        return (
            _elements(buffer) == 1
            and isinstance(first, tir.BufferStore)
            and self.names.root(first.buffer) == buffer
            and not uses(first.value)
        )

    def _initialised(self, store: Any) -> str:
        buffer = self.names.root(store.buffer)
        value = self.text(store.value)
        const = "const " if buffer in self._once else ""
        (declared,) = self._allocate(buffer)
        self.names.store(buffer)
        return f"{const}{declared.rstrip(';')} = {value};"

    def _statement(self, s: Any) -> list[str]:
        match s:
            case tir.SeqStmt():
                return self._sequence(s.seq)
            case tir.AllocBuffer():
                return self._allocate(s.buffer)
            case tir.Bind():
                value = self.text(s.value)
                self.names.local.add(s.var)
                return [f"const {self.type_of(s.var)} {self.names.declare(s.var)} = {value};"]
            case tir.BufferStore():
                self.names.store(s.buffer)
                return [f"{self.place(s.buffer, s.indices, read=False)} = {self.text(s.value)};"]
            case tir.For():
                return self._for(s)
            case tir.While():
                return self._nested(f"while ({self.text(s.condition)})", s.body)
            case tir.IfThenElse():
                return self._if(s)
            case tir.Break():
                return ["break;"]
            case tir.Continue():
                return ["continue;"]
            case tir.Evaluate():
                return self._evaluate(s.value)
        raise self.refuse(
            f"holds an {type(s).__name__} statement: {s}",
            "C is printed from loops, branches, stores and names: build with `kernels/tir.py`",
        )

    def _allocate(self, buffer: Any) -> list[str]:
        elements = _elements(buffer)
        self.names.local.add(buffer)
        if elements == 1:
            self.names.scalars.add(buffer)
        kept = c_type(str(buffer.dtype), self.kernel)
        size = "" if elements == 1 else f"[{elements}]"
        return [f"{kept} {self.names.declare(buffer)}{size};"]

    def _for(self, s: Any) -> list[str]:
        if s.kind != tir.ForKind.SERIAL or (s.step is not None and int(s.step) != 1):
            raise self.refuse(
                f"holds a loop over {s.loop_var.name} that is not serial with step 1",
                "use T.serial, or T.unroll with a fixed count",
            )
        from_zero = isinstance(s.min, tir.IntImm) and int(s.min) == 0
        end = s.extent if from_zero else s.min + s.extent
        first, last = self.text(s.min), self.text(end, SUM)
        before = []
        if any(isinstance(node, ir.TensorLoad) for node in nodes_of(end)):
            # TIR computes the end once, C would before every turn.
            limit = tir.Var(f"{s.loop_var.name}_end", dtype_of(s.loop_var))
            name = self.names.declare(limit)
            before = [f"const {self.type_of(limit)} {name} = {last};"]
            last = name
        with self.names.block():
            i = self.names.declare(s.loop_var)
            head = f"for ({self.type_of(s.loop_var)} {i} = {first}; {i} < {last}; ++{i})"
            return [*before, *self._nested(head, s.body)]

    def _if(self, s: Any) -> list[str]:
        lines = self._nested(f"if ({self.text(s.condition)})", s.then_case)
        if s.else_case is None:
            return lines
        return [*lines[:-1], *self._nested("} else", s.else_case)]

    def _evaluate(self, value: Any) -> list[str]:
        if not isinstance(value, ir.Call):
            return []
        if str(getattr(value.op, "name", "")) == "tirx.call_extern":
            return [self.call(str(value.args[0].value), value.args[1:]) + ";"]
        return [self.text(value) + ";"]


def _elements(buffer: Any) -> int:
    # lower_for_c has refused buffers whose size is not a number.
    return prod(int(extent) for extent in buffer.shape)


def _buffers(body: Any) -> Iterator[Any]:
    """Every buffer that is loaded, stored or viewed."""
    for node in nodes_of(body):
        match node:
            case ir.TensorLoad():
                yield node.source
            case tir.BufferStore():
                yield node.buffer
            case tir.DeclBuffer():
                yield _viewed(node)


def _viewed(declaration: Any) -> Any:
    data = declaration.data
    return data.args[0] if isinstance(data, ir.Call) else data


def _fitted(line: str) -> list[str]:
    """The line, broken where it is too long: outside of brackets, before an operator, if it can.

    Every space of a printed line is one that C may break at.
    """
    indent = line[: len(line) - len(line.lstrip())]
    lines = []
    while len(line) > LINE:
        spaces = _spaces(line, len(line) - len(line.lstrip()))
        if not spaces:
            break
        at = min(spaces)[-1] * -1
        lines.append(line[:at])
        line = indent + 2 * INDENT + line[at + 1 :]
    return [*lines, line]


def _spaces(line: str, start: int) -> list[tuple[int, bool, int]]:
    """The spaces up to the longest line, the best to break at being the least."""
    found, depth = [], 0
    for at in range(start, LINE + 1):
        depth += (line[at] in "([") - (line[at] in ")]")
        if line[at] == " ":
            operator = line[at + 1 :].split(" ", 1)[0] in BREAK_BEFORE
            found.append((depth, not operator, -at))
    return found
