"""Code that is put into another order computes the same, and faster as LLVM models the core."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.ir.ops.butterfly import ternary_dot_meaning
from butterflyc.compiler.run.cycles import model_blocks
from butterflyc.compiler.run.machine_code import Block
from butterflyc.compiler.run.machine_code import Instruction as Disassembled
from butterflyc.kernels.record import Spec, Tensor
from butterflyc.kernels.ternary_dot import KERNEL
from butterflyc.targets import lanes_in_order as plain
from butterflyc.targets import lanes_in_order_dot as dot
from butterflyc.targets.in_order import (
    AT_ONCE,
    CORTEX_A53,
    CORTEX_A55,
    WINDOW,
    Instruction,
    ordered,
)

from ..kernels.harness import run

PLAIN, DOT = plain.NeonInOrder(), dot.NeonDotInOrder()
MODELS = {"cortex-a53": CORTEX_A53, "cortex-a55": CORTEX_A55}


def tiles():
    """Tiles of all sizes, with the core for which they are."""
    for steps in range(1, plain.STEPS + 1):
        for vectors in range(1, plain.VECTORS + 1):
            yield "cortex-a53", "packed", plain.packed_tile(vectors, steps), (vectors, steps)
        for rows in range(1, plain.ROWS + 1):
            yield "cortex-a53", "panel", plain.panel_tile(rows, steps), (rows, steps)
    for steps in (1, 2, 3, dot.STEPS - 1, dot.STEPS):
        for vectors in range(1, dot.VECTORS + 1):
            yield "cortex-a55", "packed", dot.packed_tile(vectors, steps), (vectors, steps)
        for size in ((1, 1), (3, 2), (dot.ROWS, 1), (dot.ROWS, 2)):
            yield "cortex-a55", "panel", dot.panel_tile(*size, steps), (*size, steps)


TILES = [
    pytest.param(core, tile, id=f"{core}-{kind}-{'x'.join(map(str, size))}")
    for core, kind, tile, size in tiles()
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


@pytest.mark.parametrize(("core", "tile"), TILES)
def test_the_order_of_a_tile_means_the_same(core, tile):
    """Tiles compute what they do as they are written."""
    result = ordered(tile.code, MODELS[core])
    assert len(result) == len(tile.code)
    assert meaning(result) == meaning(tile.code)


@pytest.mark.parametrize(("core", "tile"), TILES)
def test_tiles_keep_off_what_is_not_theirs(core, tile):
    """A tile changes no pointer that it is given, and no register that belongs to the system."""
    written = {register for i in tile.code for register in i.writes}
    assert written <= {f"v{i}" for i in range(32)} | {f"x{i}" for i in range(3, 18)}
    assert {f"v{n}" for n in tile.results} <= written


def cycles(code, core):
    """Of ``code`` once, from an empty pipeline to an empty one, as LLVM models the core."""
    texts = [re.sub(r"%\d+", "x20", i.text) for i in code]
    block = Block(tuple(Disassembled(4 * i, text) for i, text in enumerate(texts)), ())
    return model_blocks([block], core)[0].once


@pytest.fixture
def llvm(needs_tool):
    """LLVM's models."""
    needs_tool("llvm-mca-19")


@pytest.mark.parametrize(
    ("core", "tile", "products", "wanted"),
    [
        pytest.param("cortex-a53", plain.packed_tile(4, 4), 4096, 4.5, id="a53-packed"),
        pytest.param("cortex-a53", plain.panel_tile(4, 4), 4096, 6.9, id="a53-panel"),
        pytest.param("cortex-a55", dot.packed_tile(4, 16), 4096, 6.3, id="a55-packed"),
        pytest.param("cortex-a55", dot.panel_tile(8, 2, 16), 16384, 12.5, id="a55-panel"),
    ],
)
def test_whole_tiles_are_as_fast_as_wanted(llvm, core, tile, products, wanted):
    """Tiles of full size reach the products a cycle that are wanted, on LLVM's model."""
    assert products / cycles(ordered(tile.code, MODELS[core]), core) > wanted


@pytest.mark.parametrize(("core", "tile"), TILES)
def test_the_order_makes_tiles_faster(llvm, core, tile):
    """No tile takes more cycles than as it is written."""
    assert cycles(ordered(tile.code, MODELS[core]), core) <= cycles(tile.code, core)


def assert_exact(lanes, rows, outputs, depth, **parameters):
    """The kernel's sums are those of its op, in QEMU, for random inputs and for the extremes."""
    rng = np.random.default_rng(depth + rows)
    random = rng.integers(-127, 128, (rows, depth), np.int8)
    weights = rng.integers(-1, 2, (outputs, depth), np.int8)
    spec = Spec(
        "ternary_dot",
        (),
        (Tensor("i8", random.shape), Tensor("ternary", weights.shape)),
        (Tensor("i32", (rows, outputs)),),
        tuple(sorted(parameters.items())),
    )
    cases = [(random, weights)]
    for code in (-127, 127):
        cases += [(np.full_like(random, code), np.full_like(weights, w)) for w in (-1, 0, 1)]
    for codes, w in cases:
        (found,) = run(KERNEL, spec, [codes, w], lanes)
        np.testing.assert_array_equal(found, ternary_dot_meaning(codes, w))


@pytest.mark.parametrize("steps", range(1, plain.STEPS + 1))
@pytest.mark.parametrize("size", range(1, plain.VECTORS + 1))
def test_every_tile_is_exact(size, steps):
    """Each tile gives the sums of its op: one row by vectors, and rows by a panel's vector."""
    assert_exact(PLAIN, 1, 4 * size, 64 * steps, panel_rows=9)
    assert_exact(PLAIN, size, 4, 64 * steps, panel_rows=0)


@pytest.mark.parametrize("steps", range(1, dot.STEPS + 1))
def test_every_tile_of_dot_products_is_exact(steps):
    """Each number of steps gives the sums of its op, for some vectors of one row, and a panel's."""
    assert_exact(DOT, 1, 4 * (1 + steps % dot.VECTORS), 16 * steps, panel_rows=9)
    assert_exact(DOT, 1 + steps % dot.ROWS, 12, 16 * steps, panel_rows=0)


@pytest.mark.parametrize("lanes", [PLAIN, DOT], ids=lambda lanes: lanes.name)
@pytest.mark.parametrize(
    ("rows", "outputs", "parameters"),
    [
        (2, 20, {"panel_rows": 99, "tile_rows": 2, "tile_vectors": 1}),
        (1, 40, {"panel_rows": 99, "tile_vectors": 5}),
        (9, 20, {"panel_rows": 0, "tile_rows": 9, "tile_vectors": 1}),
        (4, 20, {"panel_rows": 0, "tile_rows": 2, "tile_vectors": 4}),
    ],
)
def test_other_tiles_are_exact_too(lanes, rows, outputs, parameters):
    """Sizes for which there is no assembly are added up by a loop, to the same sums."""
    assert_exact(lanes, rows, outputs, 300, **parameters)


@pytest.mark.parametrize(
    ("function", "tile", "size", "core"),
    [
        (plain.packed_function, plain.packed_tile, (2, 3), "cortex-a53"),
        (plain.panel_function, plain.panel_tile, (2, 3), "cortex-a53"),
        (dot.packed_function, dot.packed_tile, (2, 3), "cortex-a55"),
        (dot.panel_function, dot.panel_tile, (2, 1, 3), "cortex-a55"),
    ],
)
def test_functions_hold_the_ordered_code(function, tile, size, core):
    """The IR of a tile is one piece of assembly: all of its instructions, in their order."""
    name, text = function(*size)
    assert f"@{name}(" in text
    code = text.split('asm sideeffect "')[1].split('"')[0].split("\\0A")
    wanted = ordered(tile(*size).code, MODELS[core])
    assert [line.split()[0] for line in code] == [i.text.split()[0] for i in wanted]
