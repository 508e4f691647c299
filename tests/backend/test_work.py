"""The classes of work of a kernel are counted as often as a call does them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.lower.work import work_of
from butterflyc.kernels.record import Tensor
from butterflyc.kernels.tir import DISTINCT, Registers, T, cast, function, loop, named, store

SIZE = 4000
BUFFERS = {"x": Tensor("i8", (SIZE,)), "w": Tensor("i8", (SIZE,)), "y": Tensor("i32", (SIZE,))}
COPIES = {"x": Tensor("i8", (SIZE,)), "y": Tensor("i8", (SIZE,))}


def counted(
    body: Callable[..., Any], buffers: dict[str, Tensor] = BUFFERS, distinct: bool = True
) -> dict[str, float] | None:
    with function("f", buffers) as f:
        body(*f.buffers)
    made = f.result if distinct else f.result.without_attr(DISTINCT)
    work = work_of(made)
    return None if work is None else dict(work)


def dot(rows: int, depth: int) -> Callable[..., None]:
    """``rows`` sums of products."""

    def body(x: Any, w: Any, y: Any) -> None:
        with loop("row", rows) as row:
            total = Registers(1, 1, "int32")
            total[0] = T.int32(0)
            with loop("k", depth) as k:
                total[0] = total[0] + cast("int32", x[row * depth + k], 1) * cast("int32", w[k], 1)
            store(y, total[0], row)

    return body


@given(st.integers(2, 9), st.integers(60, 90))
def test_sums_of_products(rows: int, depth: int) -> None:
    """Two loads, a product and a sum a turn; a sum is stored a row, registers are free."""
    turns = rows * depth
    assert counted(dot(rows, depth)) == {
        "call": 1,
        "loop": 1 + rows,
        "turn": rows + turns,
        "load int8": 2 * turns,
        "place": turns,
        "multiply": turns,
        "add": turns,
        "store int32": rows,
    }


def test_what_is_the_same_in_all_turns_is_computed_once() -> None:
    """A factor and its shift count once a row; not where the result may lie over the factor."""

    def body(x: Any, w: Any, y: Any) -> None:
        with loop("row", 5) as row, loop("k", 70) as k:
            store(y, cast("int32", x[k], 1) * (cast("int32", w[row], 1) << 3), row * 70 + k)

    once, again = counted(body), counted(body, distinct=False)
    assert once
    assert again
    assert (once["load int8"], once["shift"], once["multiply"]) == (350 + 5, 5, 350)
    assert (again["load int8"], again["shift"]) == (350 + 350, 350)


def test_short_loops() -> None:
    """A loop of little work has turns that are unrolled, one of a single turn has none."""

    def body(x: Any, w: Any, y: Any) -> None:
        with loop("row", 100) as row, loop("i", 3) as i, loop("one", 1) as one:
            store(y, cast("int32", x[row + i + one], 1), row * 3 + i)

    found = counted(body)
    assert found
    assert (found["loop"], found["turn"], found["short turn"]) == (1, 100, 300)


def test_loops_of_no_turns_do_nothing() -> None:
    """What stands in them is not counted."""

    def body(x: Any, w: Any, y: Any) -> None:
        with loop("i", 0) as i:
            store(y, cast("int32", x[i], 1), i)

    assert counted(body) == {"call": 1}


def test_extents_of_outer_loops() -> None:
    """A triangle counts as many turns as it has."""

    def body(x: Any, w: Any, y: Any) -> None:
        with loop("row", 61) as row, loop("k", row + 1) as k:
            store(y, cast("int32", x[k], 1), row)

    found = counted(body)
    assert found
    assert found["store int32"] == 61 * 62 / 2


def test_branches() -> None:
    """What a turn's number decides counts as it is taken, what data decide by halves."""

    def body(x: Any, w: Any, y: Any) -> None:
        with loop("i", 80) as i:
            with T.If(i == 0):
                with T.Then():
                    store(y, T.int32(1), i)
                with T.Else():
                    store(y, cast("int32", x[i], 1), i)
            with T.If(cast("int32", w[i], 1) < 0), T.Then():
                store(y, T.int32(2), i)

    found = counted(body)
    assert found
    assert found["load int8"] == 79 + 80
    assert found["store int32"] == 80 + 40
    assert (found["branch"], found["compare"]) == (80, 80)


def test_lookups_casts_limits_and_calls() -> None:
    """Each class under its own name: a product by a power of two is a shift."""

    def body(x: Any, w: Any, y: Any) -> None:
        with loop("i", 80) as i:
            code = named("code", cast("int32", w[cast("int32", x[i], 1) + 128], 1))
            small = cast("int32", cast("int16", code * T.int32(3), 1), 1)
            limited = T.min(T.truncdiv(small, code * 4), T.int32(9))
            store(y, T.call_pure_extern("int32", "smlad", limited, code, code), i)

    assert counted(body) == {
        "call": 1,
        "loop": 1,
        "turn": 80,
        "load int8": 80,
        "look up int8": 80,
        "multiply": 80,
        "cast": 80,
        "shift": 80,
        "divide": 80,
        "limit": 80,
        "smlad": 80,
        "store int32": 80,
    }


def test_copies() -> None:
    """Elements that follow each other are a copy, long or short; those that do not are loads."""

    def body(x: Any, y: Any) -> None:
        with loop("row", 9) as row:
            for size in (100, 8):
                with loop("i", size) as i:
                    store(y, x[row * 300 + i], row * 100 + i)
            with loop("i", 70) as i:
                store(y, x[i * 2], row * 70 + i)

    found = counted(body, COPIES)
    assert found
    assert (found["copy"], found["copy int8"]) == (9, 900)
    assert (found["short copy"], found["short copy int8"]) == (9, 72)
    assert found["store int8"] == 630


def test_loops_by_data_are_not_counted() -> None:
    """Nobody knows how often they turn; nor what is done while something holds."""

    def by_data(x: Any, w: Any, y: Any) -> None:
        with loop("k", cast("int32", x[0], 1)) as k:
            store(y, T.int32(0), k)

    def while_true(x: Any, w: Any, y: Any) -> None:
        with T.While(x[0] > 0):
            store(y, T.int32(0), 0)

    assert counted(by_data) is None
    assert counted(while_true) is None
