"""Parts of an op, computed apart, are the op."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterflyc.compiler.ir import Node, Type, input_node, make
from butterflyc.compiler.ir.ops import OPS
from butterflyc.compiler.ir.parts import BY_PARTS, Split, part_types, split_of

from .part_cases import CASES, values

LEADS = st.lists(st.integers(1, 4), min_size=1, max_size=2).map(tuple)
# Made by passes of microcontrollers only, which have no threads.
NOT_SHOWN = {"quantized_linear", "quantized_ternary", "quantized_combine"}


def node_of(name: str, lead: tuple[int, ...]) -> Node:
    types, attributes = CASES[name](lead)
    operands = [input_node(f"x{i}", type) for i, type in enumerate(types)]
    return make(name.split()[0], *operands, **attributes)


def meaning(node: Node, arrays: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    found = OPS[node.op].meaning(*arrays, **node.attributes)
    return found if isinstance(found, tuple) else (found,)


def doubled(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def part(array: np.ndarray, rows: int, first: int, type: Type) -> np.ndarray:
    """Rows of ``array`` from ``first`` on, as many as ``type`` has."""
    flat = array.reshape(rows, -1)
    return flat[first : first + type.size // flat.shape[1]].reshape(type.shape)


@pytest.mark.parametrize("name", [name for name in CASES if name != "qkv_attention"])
@given(LEADS, st.integers(1, 5), st.integers(0, 99))
def test_parts_computed_apart_are_the_whole(
    name: str, lead: tuple[int, ...], parts: int, seed: int
) -> None:
    """Each part needs no more than its rows, and all parts together give the op's results."""
    node = node_of(name, lead)
    split = split_of(node)
    if split is None:
        return
    rng = np.random.default_rng(seed)
    # In double precision: in what order a library sums depends on how many rows there are.
    arrays = [doubled(values(x.type, rng)) for x in node.operands]
    whole = meaning(node, arrays)
    for first, behind in split.spans(parts):
        if first == behind:
            continue
        operands, results = part_types(node, split, behind - first)
        mine = [
            part(x, split.rows, first, type) if i in split.by_rows else x
            for i, (x, type) in enumerate(zip(arrays, operands, strict=True))
        ]
        assert [x.shape for x in mine] == [type.shape for type in operands]
        for found, wanted, type in zip(meaning(node, mine), whole, results, strict=True):
            assert found.shape == type.shape
            wanted = part(wanted, split.rows, first, type)
            np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


def test_every_op_of_the_table_is_shown() -> None:
    """No op is said to have parts without a case above."""
    assert set(BY_PARTS) - NOT_SHOWN <= {name.split()[0] for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_each_case_has_parts(name: str) -> None:
    """The cases show what they are for: none of them is computed by one thread."""
    assert split_of(node_of(name, (3, 4))) is not None


@given(st.integers(1, 99), st.integers(1, 9))
def test_parts_are_of_almost_equal_size(rows: int, parts: int) -> None:
    """Sizes differ by one at most, are not 0, and add up; spans follow one another."""
    split = Split(rows, frozenset())
    sizes = [size for count, size in split.sizes(parts) for _ in range(count)]
    assert sum(sizes) == rows
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 0
    assert len(sizes) == min(rows, parts)
    ends = split.spans(parts)
    assert [b - a for a, b in ends if a < b] == sizes
    assert [a for a, _ in ends[1:]] == [b for _, b in ends[:-1]]


def test_65_rows_in_4_parts() -> None:
    """The larger parts come first: 17, 16, 16, 16."""
    assert Split(65, frozenset()).sizes(4) == ((1, 17), (3, 16))


def test_the_rows_of_all_images_are_dealt_out() -> None:
    """Two images of 65 tokens are 130 rows, but heads of an image that lie side by side stay."""
    x, w = input_node("x", Type("f32", (2, 65, 8))), input_node("w", Type("f32", (24, 8)))
    product = make("linear", x, w)
    assert split_of(product) == Split(130, frozenset({0}))
    assert part_types(product, Split(130, frozenset({0})), 33)[0][0].shape == (1, 33, 8)
    few = make("qkv_attention", product, heads=2, scale=1.0)
    assert split_of(few) == Split(2, frozenset({0}))
    many = make("qkv_attention", product, heads=4, scale=1.0)
    assert split_of(many) == Split(4, frozenset(), heads=True)
    assert part_types(many, Split(4, frozenset(), heads=True), 1)[1] == many.types


@pytest.mark.parametrize(
    ("op", "shapes", "attributes"),
    [
        ("softmax", [(4, 9)], {"axis": 0}),  # goes along the rows
        ("add", [(9, 15), (9, 15)], {}),  # a row is less than a vector
        ("add", [(1, 99), (99,)], {}),  # one row
        ("matmul", [(3, 4, 5), (1, 5, 6)], {}),  # one matrix, repeated
        ("linear", [(1, 9), (8, 9)], {}),  # one row
        ("rotate", [(1, 6), (4, 3, 2, 2), (9,)], {}),  # one row, for each expert
        ("transpose", [(4, 5)], {"order": (1, 0)}),
    ],
)
def test_what_has_no_parts(
    op: str, shapes: list[tuple[int, ...]], attributes: dict[str, object]
) -> None:
    """An op is computed by one thread where a part would need more than its rows."""
    operands = [
        input_node(f"x{i}", Type("i64" if op == "rotate" and i == 2 else "f32", shape))
        for i, shape in enumerate(shapes)
    ]
    node = make(op, *operands, **attributes)
    assert prod(node.type.shape) > 1
    assert split_of(node) is None
