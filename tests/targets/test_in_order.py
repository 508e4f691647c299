"""Code that is put into another order computes the same, and faster as LLVM models the core."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir.ops.butterfly import ternary_dot_meaning
from butterflyc.compiler.run.cycles import model_blocks
from butterflyc.compiler.run.llvm import llvm_version
from butterflyc.compiler.run.machine_code import Block
from butterflyc.compiler.run.machine_code import Instruction as Disassembled
from butterflyc.kernels.record import Spec, Tensor
from butterflyc.kernels.ternary_dot import KERNEL
from butterflyc.targets.in_order import AT_ONCE, CORTEX_A53, WINDOW, Instruction, ordered
from butterflyc.targets.lanes_in_order import (
    ROWS,
    STEPS,
    VECTORS,
    NeonInOrder,
    packed_function,
    packed_tile,
    panel_function,
    panel_tile,
)

from ..conftest import STRICT_TOOLS
from ..kernels.harness import run

TILES = [
    *(
        pytest.param(packed_tile(v, s), id=f"packed-{v}x{s}")
        for v in range(1, VECTORS + 1)
        for s in range(1, STEPS + 1)
    ),
    *(
        pytest.param(panel_tile(r, s), id=f"panel-{r}x{s}")
        for r in range(1, ROWS + 1)
        for s in range(1, STEPS + 1)
    ),
]
REGISTERS = st.sampled_from([f"v{i}" for i in range(5)])
GROUPS = st.sampled_from([None, "a", "b"])
INSTRUCTIONS = st.builds(
    Instruction,
    st.uuids().map(str),
    st.sampled_from(sorted(CORTEX_A53)),
    st.lists(REGISTERS, max_size=3).map(tuple),
    st.lists(REGISTERS, min_size=1, max_size=2, unique=True).map(tuple),
    GROUPS,
    GROUPS,
)


def meaning(code):
    """What the registers hold in the end, as terms of what each instruction read."""
    held: dict[str, int] = {}
    for i in code:
        value = hash((i.text, *(held.get(register) for register in i.reads)))
        held |= {register: hash((value, n)) for n, register in enumerate(i.writes)}
    return held


@given(st.lists(INSTRUCTIONS, max_size=60))
@settings(max_examples=200)
def test_code_in_another_order_means_the_same(code):
    """All instructions are there once, read and leave the same, and groups stay before others."""
    result = ordered(code, CORTEX_A53)
    assert sorted(i.text for i in result) == sorted(i.text for i in code)
    assert meaning(result) == meaning(code)
    place = {i.text: n for n, i in enumerate(result)}
    for n, later in enumerate(code):
        for earlier in code[:n]:
            if earlier.group is not None and earlier.group == later.behind:
                assert place[earlier.text] < place[later.text]


@given(st.lists(INSTRUCTIONS, max_size=60))
@settings(max_examples=20)
def test_the_order_is_always_the_same(code):
    """The same code is put into the same order."""
    assert ordered(code, CORTEX_A53) == ordered(list(code), CORTEX_A53)


def test_pointers_change_though_arithmetic_could_go_on():
    """A pointer changes as soon as it can: what is short would else wait for all that is long."""
    long = [Instruction(f"long {i}", "neon", (), (f"v{i}",)) for i in range(WINDOW)]
    result = ordered([*long, Instruction("short", AT_ONCE, (), ("x3",))], CORTEX_A53)
    assert result.index(Instruction("short", AT_ONCE, (), ("x3",))) < 4


@pytest.mark.parametrize("tile", TILES)
def test_the_order_of_a_tile_means_the_same(tile):
    """Tiles compute what they do as they are written."""
    result = ordered(tile.code, CORTEX_A53)
    assert len(result) == len(tile.code)
    assert meaning(result) == meaning(tile.code)


@pytest.mark.parametrize("tile", TILES)
def test_tiles_keep_off_what_is_not_theirs(tile):
    """A tile changes no pointer that it is given, and no register that belongs to the system."""
    written = {register for i in tile.code for register in i.writes}
    assert written <= {f"v{i}" for i in range(32)} | {f"x{i}" for i in range(3, 18)}
    assert {f"v{n}" for n in tile.results} <= written


def cycles(code):
    """Of ``code`` once and once more, as LLVM models the Cortex-A53."""
    texts = [i.text.replace("%", "x2") for i in code]
    block = Block(tuple(Disassembled(4 * i, text) for i, text in enumerate(texts)), ())
    return model_blocks([block], "cortex-a53")[0].once


@pytest.fixture
def llvm():
    """LLVM's tools, or a reason to skip."""
    found = llvm_version()
    if found is None:
        assert not STRICT_TOOLS, "llvm-mca not found (BUTTERFLYC_STRICT_TOOLS is set)"
        pytest.skip("llvm-mca not found; `make toolchains` may install it")


@pytest.mark.parametrize(
    ("tile", "products", "wanted"),
    [(packed_tile(4, 4), 4096, 4.5), (panel_tile(4, 4), 4096, 6.9)],
    ids=["packed", "panel"],
)
def test_whole_tiles_are_as_fast_as_wanted(llvm, tile, products, wanted):
    """Tiles of full size reach the products a cycle that are wanted, on LLVM's model."""
    assert products / cycles(ordered(tile.code, CORTEX_A53)) > wanted


@pytest.mark.parametrize("tile", TILES)
def test_the_order_makes_tiles_faster(llvm, tile):
    """Tiles take at most half of the cycles that they take as they are written."""
    assert 2 * cycles(ordered(tile.code, CORTEX_A53)) < cycles(tile.code)


def product(codes, w, **parameters):
    """The kernel's sums for codes [T, K] and w [N, K], in QEMU."""
    spec = Spec(
        "ternary_dot",
        (),
        (Tensor("i8", codes.shape), Tensor("ternary", w.shape)),
        (Tensor("i32", (len(codes), len(w))),),
        tuple(sorted(parameters.items())),
    )
    return run(KERNEL, spec, [codes, w], NeonInOrder())[0]


@pytest.mark.parametrize("steps", range(1, STEPS + 1))
@pytest.mark.parametrize(
    ("rows", "outputs", "panel_rows"),
    [
        *((1, 4 * vectors, 9) for vectors in range(1, VECTORS + 1)),
        *((rows, 4, 0) for rows in range(1, ROWS + 1)),
    ],
)
def test_every_tile_is_exact(steps, rows, outputs, panel_rows):
    """Each tile gives the sums of its op, for random inputs and for the extremes."""
    depth = 64 * steps
    rng = np.random.default_rng(depth + rows)
    random = rng.integers(-127, 128, (rows, depth), np.int8)
    weights = rng.integers(-1, 2, (outputs, depth), np.int8)
    one, most = np.int8(1), np.int8(127)
    extremes = [(sign * most, weight * one) for sign in (-1, 1) for weight in (-1, 0, 1)]
    cases = [(random, weights)]
    cases += [(np.full_like(random, c), np.full_like(weights, w)) for c, w in extremes]
    for codes, w in cases:
        found = product(codes, w, panel_rows=panel_rows)
        np.testing.assert_array_equal(found, ternary_dot_meaning(codes, w))


@pytest.mark.parametrize(
    ("rows", "outputs", "parameters"),
    [
        (2, 20, {"panel_rows": 9, "tile_rows": 2, "tile_vectors": 1}),
        (1, 40, {"panel_rows": 9, "tile_vectors": 8}),
        (6, 20, {"panel_rows": 0, "tile_rows": 6, "tile_vectors": 1}),
        (4, 20, {"panel_rows": 0, "tile_rows": 2, "tile_vectors": 2}),
    ],
)
def test_other_tiles_are_exact_too(rows, outputs, parameters):
    """Sizes for which there is no assembly are added up by a loop, to the same sums."""
    rng = np.random.default_rng(rows)
    codes = rng.integers(-127, 128, (rows, 300), np.int8)
    w = rng.integers(-1, 2, (outputs, 300), np.int8)
    found = product(codes, w, **parameters)
    np.testing.assert_array_equal(found, ternary_dot_meaning(codes, w))


@pytest.mark.parametrize(
    ("function", "tile"), [(packed_function, packed_tile), (panel_function, panel_tile)]
)
def test_functions_hold_the_ordered_code(function, tile):
    """The IR of a tile is one piece of assembly: all of its instructions, in their order."""
    name, text = function(2, 3)
    made = tile(2, 3)
    assert f"@{name}(" in text
    code = text.split('asm sideeffect "')[1].split('"')[0].split("\\0A")
    assert [line.split()[0] for line in code] == [
        i.text.split()[0] for i in ordered(made.code, CORTEX_A53)
    ]
