"""The table product of two rows, printed as C, under the sanitizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from butterflyc.kernels.layout import pack
from butterflyc.kernels.layout_table import pack_pair
from butterflyc.kernels.ternary_table import build

from .printed import Array, run_printed

# outputs, depth, trits, groups, unroll
SHAPES = [
    (8, 40, 5, 4, 4),
    (13, 50, 5, 4, 4),  # neither depth nor outputs are whole blocks
    (3, 7, 5, 4, 8),  # less than one block, and than one turn
    (16, 64, 4, 8, 1),
    (9, 65, 4, 8, 2),
    (5, 256, 5, 8, 4),
    (7, 256, 3, 2, 2),
    (4, 30, 2, 5, 3),
    (6, 11, 1, 1, 4),
    (1, 1, 5, 4, 4),
]


def buffers(x: Array, w: Array, trits: int, groups: int) -> list[Array]:
    """What the kernel is called with: scratch and results hold garbage."""
    garbage = np.full((3, len(w)), 0x2B2B2B2B, np.int32)
    table = np.full(groups * 3**trits, 0x2B2B2B2B, np.int32)
    codes = pack(f"table{trits}x{groups}", w)
    return [pack_pair(x, trits, groups), codes, table, garbage[0], garbage[1:]]


def test_products_are_exact(needs_tool: Callable[..., str], tmp_path: Path) -> None:
    """acc is x @ w.T for random rows, at whole blocks and turns and at parts of them."""
    rng = np.random.default_rng(0)
    functions, calls, wanted = [], [], []
    for i, (outputs, depth, trits, groups, unroll) in enumerate(SHAPES):
        x = rng.integers(-127, 128, (2, depth)).astype(np.int8)
        w = rng.integers(-1, 2, (outputs, depth)).astype(np.int8)
        functions.append(build(outputs, depth, f"f{i}", trits, groups, unroll))
        calls.append((f"f{i}", buffers(x, w, trits, groups)))
        wanted.append(x.astype(np.int32) @ w.T.astype(np.int32))
    results = run_printed(tmp_path, needs_tool("gcc"), functions, calls)
    for after, expected, shape in zip(results, wanted, SHAPES, strict=True):
        np.testing.assert_array_equal(after[-1], expected, err_msg=str(shape))


@pytest.mark.parametrize(("trits", "groups"), [(5, 4), (4, 8)])
def test_nothing_overflows_at_the_bounds(
    needs_tool: Callable[..., str], tmp_path: Path, trits: int, groups: int
) -> None:
    """256 columns of 127 or -127 by weights that are all 1 or all -1 give the exact sums."""
    depth, calls, wanted = 256, [], []
    for first in (127, -127):
        for second in (127, -127):
            for weight in (1, -1):
                x = np.repeat([[first], [second]], depth, 1).astype(np.int8)
                w = np.full((6, depth), weight, np.int8)
                calls.append(("f", buffers(x, w, trits, groups)))
                wanted.append(x.astype(np.int32) @ w.T.astype(np.int32))
    function = build(6, depth, "f", trits, groups)
    results = run_printed(tmp_path, needs_tool("gcc"), [function], calls)
    for after, expected in zip(results, wanted, strict=True):
        np.testing.assert_array_equal(after[-1], expected)
    assert max(np.abs(expected).max() for expected in wanted) == 256 * 127


def test_more_columns_than_fit_are_refused() -> None:
    """257 columns could overflow, and none have no product."""
    for depth in (0, 257):
        with pytest.raises(ValueError, match=f"two rows of {depth} columns.*split k"):
            build(4, depth, "f")
