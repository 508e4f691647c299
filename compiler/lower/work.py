"""How often a kernel does what: its loops and branches are walked, and nothing is run.

Prices of these classes of work are fitted to counts (`targets/prices.py`), so a class need not be
one instruction; it has to be as often in the function that a C compiler makes as it is here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...kernels.tir import DISTINCT, LazyModule
from .tir import dtype_of, nodes_of

ir: Any = LazyModule("tvm.ir")
tir: Any = LazyModule("tvm.tirx")

CLASSES = {
    "Add": "add",
    "Sub": "add",
    "BitwiseAnd": "add",
    "BitwiseOr": "add",
    "BitwiseXor": "add",
    "Mul": "multiply",
    "Div": "divide",
    "Mod": "divide",
    "FloorDiv": "divide",
    "FloorMod": "divide",
    "LShift": "shift",
    "RShift": "shift",
    "Min": "limit",
    "Max": "limit",
    "Select": "select",
    "EQ": "compare",
    "NE": "compare",
    "LT": "compare",
    "LE": "compare",
    "GT": "compare",
    "GE": "compare",
    "And": "compare",
    "Or": "compare",
    "Not": "compare",
}


# What compilers unroll whole: a loop of so much work, in all its turns.
SHORT = 100
# Elements that are copied without a call of memcpy, about.
COPIED_INLINE = 32


def work_of(function: Any) -> Counter[str] | None:
    """Classes of work by how often a call does them; None where data say how often a loop turns.

    A loop whose turns depend on loops around it counts as in their middle. A branch on the number
    of a turn counts as often as it is taken, any other half of the time. What the function
    allocates is taken for registers, and where an element lies costs nothing but what is loaded
    for it: compilers move pointers. Nor is a value computed in a loop that it does not depend on.
    """
    walk = _Walk(function)
    try:
        walk.statement(function.body)
    except _Unknown:
        return None
    walk.found["call"] = 1
    return +walk.found


class _Unknown(Exception):
    """Data decide."""


class _Walk:
    """``found``: classes of work.

    A level is how many loops are around a value, of those that it depends on.
    """

    def __init__(self, function: Any) -> None:
        self.found: Counter[str] = Counter()
        self._times: list[float] = [1]  # by level
        self._loops: dict[Any, tuple[int, float]] = {}  # level and turns
        self._levels: dict[Any, int] = {}  # of names, and of registers that are set once
        self._allocated: set[Any] = set()
        self._opened = False  # whether a loop that stays a loop has been left
        self._distinct = DISTINCT in function.attrs
        stores = [node for node in nodes_of(function.body) if isinstance(node, tir.BufferStore)]
        self._stores = Counter(_element(store.buffer, store.indices) for store in stores)
        self._written = {store.buffer for store in stores}

    @property
    def _level(self) -> int:
        return len(self._times) - 1

    def statement(self, s: Any) -> None:
        match s:
            case tir.SeqStmt():
                for part in s.seq:
                    self.statement(part)
            case tir.AllocBuffer():
                self._allocated.add(s.buffer)
            case tir.Bind():
                self._levels[s.var] = self._value(s.value)
            case tir.BufferStore():
                self._store(s)
            case tir.For():
                self._loop(s)
            case tir.IfThenElse():
                self._branch(s)
            case tir.Evaluate():
                self._value(s.value)
            case _:
                raise _Unknown

    def _loop(self, s: Any) -> None:
        turns = self._middle(s.extent)
        if turns <= 0:
            return
        if turns == 1:
            self._loops[s.loop_var] = 0, 1
            self.statement(s.body)
            return
        around, before, self._opened = self._times[-1], self.found.total(), False
        copied = _copied(s)
        if copied:  # compilers call memcpy
            name = "short copy" if turns <= COPIED_INLINE else "copy"
            self.found[name] += around  # type: ignore[assignment]
            self.found[f"{name} {copied}"] += around * turns  # type: ignore[assignment]
            return
        self._times.append(around * turns)
        self._loops[s.loop_var] = self._level, turns
        self.statement(s.body)
        self._times.pop()
        work = (self.found.total() - before) / around if around else 0
        if not self._opened and work <= SHORT:
            self.found["short turn"] += around * turns  # type: ignore[assignment]
            return
        self._opened = True
        self.found["loop"] += around  # type: ignore[assignment]
        self.found["turn"] += around * turns  # type: ignore[assignment]

    def _middle(self, extent: Any) -> float:
        """What an expression of loops' numbers is in their middle."""
        match extent:
            case tir.IntImm():
                return int(extent)
            case tir.Var() if extent in self._loops:
                return (self._loops[extent][1] - 1) / 2
            case tir.Add():
                return self._middle(extent.a) + self._middle(extent.b)
            case tir.Sub():
                return self._middle(extent.a) - self._middle(extent.b)
        raise _Unknown

    def _branch(self, s: Any) -> None:
        taken = self._taken(s.condition)
        if taken is None:
            self._value(s.condition)
            self._count("branch", self._level)
            taken = 0.5
        around = self._times[-1]
        self._times[-1] = around * taken
        self.statement(s.then_case)
        self._times[-1] = around * (1 - taken)
        if s.else_case is not None:
            self.statement(s.else_case)
        self._times[-1] = around

    def _taken(self, condition: Any) -> float | None:
        """In what part of its turns a loop's number is what is asked; None if more is asked."""
        compared = isinstance(condition, (tir.EQ, tir.LT, tir.GE))
        if not compared or condition.a not in self._loops or not _is_number(condition.b):
            return None
        turns, limit = self._loops[condition.a][1], int(condition.b)
        if isinstance(condition, tir.EQ):
            return 1 / turns if 0 <= limit < turns else 0
        below = min(max(limit / turns, 0), 1)
        return below if isinstance(condition, tir.LT) else 1 - below

    def _store(self, s: Any) -> None:
        value = s.value
        if isinstance(value, tir.Cast):  # what is stored is cut off for nothing
            value = value.value
        level = self._value(value)
        self._place(s.buffer, s.indices)
        if s.buffer in self._allocated:
            element = _element(s.buffer, s.indices)
            self._levels[element] = level if self._stores[element] == 1 else self._level
        else:
            self._count(f"store {s.buffer.dtype}", self._level)

    def _place(self, buffer: Any, indices: Sequence[Any]) -> tuple[int, bool]:
        """The level of a place, and whether something is loaded to know it."""
        loads = [load for index in indices for load in _loads(index)]
        names = {node for index in indices for node in nodes_of(index) if isinstance(node, tir.Var)}
        levels = {self._level_of(name) for name in names} | {self._value(load) for load in loads}
        level = max(levels, default=0)
        if buffer not in self._allocated:
            for _ in range(len(levels - {0}) - 1):
                self._count("place", level)
        return level, bool(loads)

    def _level_of(self, node: Any) -> int:
        """The level of a name."""
        level = self._loops[node][0] if node in self._loops else self._levels.get(node, 0)
        return min(level, self._level)

    def _value(self, node: Any) -> int:
        """Counts the work of an expression, and returns its level."""
        match node:
            case ir.TensorLoad():
                return self._load(node)
            case tir.Var():
                return self._level_of(node)
            case ir.Call():
                return self._call(node)
            case tir.Cast():
                level = self._value(node.value)
                return self._count("cast", level) if _narrows(node) else level
        parts = _operands(node)
        level = max((self._value(part) for part in parts), default=0)
        name = CLASSES.get(type(node).__name__)
        if name == "multiply" and any(map(_is_power_of_two, parts)):
            name = "shift"
        return self._count(name, level) if name else level

    def _load(self, node: Any) -> int:
        level, looked_up = self._place(node.source, node.indices)
        if node.source in self._allocated:
            element = _element(node.source, node.indices)
            return min(self._levels.get(element, self._level), self._level)
        if not self._distinct or node.source in self._written:
            level = self._level
        return self._count(f"{'look up' if looked_up else 'load'} {node.source.dtype}", level)

    def _call(self, node: Any) -> int:
        name = str(getattr(node.op, "name", node.op)).split(".")[-1]
        arguments = list(node.args)
        if name == "address_of":
            return self._place(arguments[0].source, arguments[0].indices)[0]
        if name.endswith("extern"):
            name, *arguments = str(arguments[0].value), *arguments[1:]
        level = max((self._value(argument) for argument in arguments), default=0)
        return self._count(name, level)

    def _count(self, name: str, level: int) -> int:
        """Counts what is done at ``level``, which is returned."""
        self.found[name] += self._times[level]  # type: ignore[assignment]
        return level


def _element(buffer: Any, indices: Sequence[Any]) -> tuple[Any, ...]:
    """A name for what lies at known indices; elsewhere all elements have one."""
    return buffer, *(int(index) if _is_number(index) else None for index in indices)


def _offset(buffer: Any, indices: Sequence[Any], one: Any = None) -> int:
    """Which element it is in the first turn of all loops, but the second of ``one``."""
    place = 0
    for index, size in zip(indices, buffer.shape, strict=True):
        place = place * int(size) + _at_zero(index, one)
    return place


def _at_zero(node: Any, one: Any = None) -> int:
    """An index where all names are 0, but for ``one``, which is 1."""
    match node:
        case tir.IntImm():
            return int(node)
        case tir.Var():
            return int(one is not None and node.same_as(one))
        case tir.Cast():
            return _at_zero(node.value, one)
        case tir.Add():
            return _at_zero(node.a, one) + _at_zero(node.b, one)
        case tir.Sub():
            return _at_zero(node.a, one) - _at_zero(node.b, one)
        case tir.Mul():
            return _at_zero(node.a, one) * _at_zero(node.b, one)
    return 0


def _copied(loop: Any) -> str | None:
    """The type of what a loop copies, if it does nothing else, and one element after the other."""
    store = loop.body
    if not isinstance(store, tir.BufferStore) or not isinstance(store.value, ir.TensorLoad):
        return None
    load = store.value
    places = (store.buffer, store.indices), (load.source, load.indices)
    moves = [_offset(b, i, loop.loop_var) - _offset(b, i) for b, i in places]
    same = load.source.dtype == store.buffer.dtype
    return str(load.source.dtype) if moves == [1, 1] and same else None


def _operands(node: Any) -> list[Any]:
    if isinstance(node, tir.Select):
        return [node.condition, node.true_value, node.false_value]
    return [getattr(node, key) for key in ("a", "b") if hasattr(node, key)]


def _loads(node: Any) -> list[Any]:
    """The outermost loads of an expression."""
    if isinstance(node, ir.TensorLoad):
        return [node]
    inner = [node.value] if isinstance(node, tir.Cast) else _operands(node)
    return [load for part in inner for load in _loads(part)]


def _is_number(node: Any) -> bool:
    return isinstance(node, tir.IntImm)


def _is_power_of_two(node: Any) -> bool:
    return _is_number(node) and int(node) > 0 and int(node).bit_count() == 1


def _narrows(cast: Any) -> bool:
    """Whether bits are cut off a number that was computed."""

    def bits(dtype: str) -> int:
        return int("".join(filter(str.isdigit, dtype)) or 1)

    return bits(dtype_of(cast)) < bits(dtype_of(cast.value))
