"""Ternary products of two rows at once without a multiplication, for chips without vectors.

Two rows of int8 lie in one int32: ``pair[k] = x[0, k] + 65536 * x[1, k]``. Of every ``trits``
columns all ``3 ** trits`` signed sums are tabled; a weight byte then names one of them.

All arithmetic is int32. While \\|x\\| <= 127 and depth <= 256, every sum of terms ``+-pair[k]``, in
whatever order, is at most 256 * 127 * 65537 < 2**31, so nothing overflows; and a row's own sum is
at most 256 * 127 < 2**15, so the halves of a lane can be told apart. x = -128 is not allowed.
"""

from __future__ import annotations

from typing import Any

from .layout_table import columns_of
from .record import Tensor
from .tir import T, cast, function, loop, named, store

# Of k: with more, two sums no longer fit into one int32.
LARGEST_DEPTH = 256


def build(
    outputs: int, depth: int, name: str, trits: int = 5, groups: int = 4, unroll: int = 4
) -> Any:
    """The TIR function (pair, codes, table, lanes, acc): acc[r, f] = sum_k x[r, k] * w[f, k].

    A table covers ``groups`` times ``trits`` columns; ``unroll`` outputs are computed in a turn.
    pair i32[blocks * columns] is ``layout_table.pack_pair`` of x, codes u8[blocks, outputs, groups]
    is w in layout ``table{trits}x{groups}``, acc is i32[2, outputs]. table i32[groups * 3 ** trits]
    and lanes i32[outputs] are scratch.
    """
    if not 0 < depth <= LARGEST_DEPTH:
        raise ValueError(f"two rows of {depth} columns, of 1 to {LARGEST_DEPTH} allowed: split k")
    blocks, entries = -(-depth // columns_of(trits, groups)), 3**trits
    parameters = {
        "pair": Tensor("i32", (blocks * trits * groups,)),
        "codes": Tensor("u8", (blocks, outputs, groups)),
        "table": Tensor("i32", (groups * entries,)),
        "lanes": Tensor("i32", (outputs,)),
        "acc": Tensor("i32", (2, outputs)),
    }
    with function(name, parameters) as f:
        pair, codes, table, lanes, acc = f.buffers
        pair_sums(pair, codes, table, lanes, (outputs, blocks), trits, groups, unroll)
        with loop("f", outputs) as output:
            low, high = both_sums(lanes[output])
            store(acc, low, 0, output)
            store(acc, high, 1, output)
    return f.result


def pair_sums(
    pair: Any,
    codes: Any,
    table: Any,
    lanes: Any,
    sizes: tuple[int, int],
    trits: int,
    groups: int,
    unroll: int,
    start: Any = 0,
) -> None:
    """Write to ``lanes`` the sums of both rows, for ``sizes`` outputs and blocks of columns.

    The weights' blocks are those from ``start`` on.
    """
    outputs, blocks = sizes
    entries = 3**trits

    def add_block(b: Any, first: bool) -> None:
        for output in _each(outputs, unroll):
            total = T.int32(0) if first else lanes[output]
            for g in range(groups):
                code = cast("int32", codes[start + b, output, g], 1)
                total = total + table[code + g * entries]
            store(lanes, total, output)

    with loop("b", blocks) as b:
        with loop("g", groups) as g:
            _fill_table(pair, (b * groups + g) * trits, table, g * entries, trits)
        with T.If(b == 0):
            with T.Then():
                add_block(0, first=True)
            with T.Else():
                add_block(b, first=False)


def both_sums(lane: Any) -> tuple[Any, Any]:
    """The sums of row 0 and of row 1 that one int32 holds."""
    low = named("low", cast("int32", cast("int16", lane, 1), 1))
    return low, (lane - low) >> 16


def _each(outputs: int, unroll: int) -> Any:
    """Every output, ``unroll`` of them in a turn of a loop."""
    whole, rest = divmod(outputs, unroll)
    if whole:
        with loop("turn", whole) as turn:
            for i in range(unroll):
                yield turn * unroll + i
    yield from range(outputs - rest, outputs)


def _fill_table(pair: Any, first: Any, table: Any, start: Any, trits: int) -> None:
    """All signed sums of ``trits`` columns, grown outwards from the empty sum in the middle.

    Two columns a level: one load then gives eight sums, and what is stored is not read again before
    the next level.
    """
    middle = start + 3**trits // 2
    store(table, T.int32(0), middle)
    if trits % 2:
        x = named("x", pair[first])
        store(table, -x, middle - 1)
        store(table, x, middle + 1)
    for column in range(trits % 2, trits, 2):
        filled = 3**column
        u = named("u", pair[first + column])
        v = named("v", pair[first + column + 1])
        with loop("i", filled) as i:
            at = middle - filled // 2 + i
            m = named("m", table[at])
            for steps, value in (
                (-4, m - v - u),
                (-3, m - v),
                (-2, m - v + u),
                (-1, m - u),
                (1, m + u),
                (2, m + v - u),
                (3, m + v),
                (4, m + v + u),
            ):
                store(table, value, at + steps * filled)
