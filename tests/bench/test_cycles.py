"""Modelled cycles are those known for loops, and those of calls follow from counts by the rule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterflyc.compiler.errors import ToolFailed
from butterflyc.compiler.run.cycles import call_costs, model_blocks, timeline
from butterflyc.compiler.run.llvm import llvm_version
from butterflyc.compiler.run.products import main_products

from .assembly import assembled, block
from .loops import LOOPS

CORES = "cortex-a53", "cortex-a55", "cortex-a57", "cortex-a72", "neoverse-n1"
CODE = st.lists(
    st.sampled_from(
        [
            "add x1, x1, #1",
            "ldr q0, [x1]",
            "fmla v1.4s, v0.4s, v2.4s",
            "smlal v3.8h, v0.8b, v2.8b",
            "tbl v4.16b, { v0.16b }, v5.16b",
            "str q1, [x2]",
        ]
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize(
    ("loop", "core"), [pytest.param(x, c, id=f"{x.name}-{c}") for x in LOOPS for c in x.rates]
)
def test_known_loops_have_their_known_rates(llvm, loop, core):
    """Products a cycle, as code stands and in the best order, are within 5 % of what is known."""
    code = block(*loop.code)
    (cycles,) = model_blocks([code], core)
    products = main_products(code, floats=False)
    assert products == loop.products
    achieved, bound = loop.rates[core]
    assert products / cycles.steady == pytest.approx(achieved, rel=0.05)
    assert products / cycles.bound == pytest.approx(bound, rel=0.05)


@pytest.mark.parametrize(("core", "latency"), [("cortex-a72", 5), ("neoverse-n1", 2)])
def test_a_chain_takes_its_latency(llvm, core, latency):
    """Additions that wait for each other take the latency of one, four that do not overlap."""
    chain, apart = "fadd v{0}.4s, v{0}.4s, v31.4s", range(4)
    one, four = model_blocks(
        [block(chain.format(0)), block(*(chain.format(i) for i in apart))], core
    )
    assert one.steady == latency
    assert four.steady == max(latency, four.bound)


@pytest.mark.parametrize("core", CORES)
@given(st.lists(CODE, min_size=1, max_size=4))
@settings(max_examples=6)
def test_order_costs_cycles_and_blocks_do_not_mix(llvm, core, texts):
    """Steady cycles are no fewer than the bound, nor those of one run; a block's are its own."""
    blocks = [block(*text) for text in texts]
    together = model_blocks(blocks, core)
    assert together == [model_blocks([b], core)[0] for b in blocks]
    for cycles in together:
        assert cycles.steady >= cycles.bound - 0.01
        assert cycles.once >= cycles.steady - 1
        assert cycles.fill >= 0


def test_nothing_has_no_cycles():
    """No blocks ask no model."""
    assert model_blocks([], "cortex-a72") == []


def test_a_call_is_the_sum_of_its_blocks(llvm, tmp_path):
    """A loop takes steady cycles a turn and its fill an entry, other blocks what one run takes."""
    text = "mov x2, #9\n0: fadd v0.4s, v0.4s, v1.4s\n subs x2, x2, #1\n b.ne 0b\n ret"
    code = assembled(tmp_path, text)
    before, loop, after = model_blocks(list(code.blocks.values()), "cortex-a72")
    costs = call_costs(code, {0: 2, 4: 18, 8: 18, 12: 18, 16: 2}, "cortex-a72")
    assert [c.executions for c in costs] == [2, 18, 2]
    assert [c.cycles for c in costs] == [
        2 * before.once,
        18 * loop.steady + 2 * loop.fill,
        2 * after.once,
    ]


@pytest.mark.parametrize(("around", "entries"), [((7, 3), 3), ((3, 7), 3), ((0, 2), 2)])
def test_a_loop_that_is_jumped_over_is_entered_as_often_as_it_can_be(
    llvm, tmp_path, around, entries
):
    """Entries are at most what stands before or behind a loop, whichever was executed less."""
    text = "cbz x2, 1f\n0: fadd v0.4s, v0.4s, v1.4s\n subs x2, x2, #1\n b.ne 0b\n1: ret"
    code = assembled(tmp_path, text)
    loop = code.blocks[4]
    (cycles,) = model_blocks([loop], "cortex-a72")
    counts = {0: around[0], 4: 50, 16: around[1]}
    costs = {c.block.address: c.cycles for c in call_costs(code, counts, "cortex-a72")}
    assert costs[4] == 50 * cycles.steady + entries * cycles.fill


def test_the_timeline_has_every_instruction_of_two_turns(llvm):
    """People see what waits: each instruction once a turn, from dispatch to retirement."""
    shown = timeline(block("fadd v0.4s, v0.4s, v1.4s", "add x1, x1, #1"), "cortex-a72")
    lines = shown.partition("Timeline view:")[2].partition("Average Wait")[0]
    assert [lines.count("fadd\tv0.4s"), lines.count("add\tx1")] == [2, 2]


def test_what_was_not_executed_costs_nothing(llvm, tmp_path):
    """Blocks that no count names are left out."""
    code = assembled(tmp_path, "cbz x0, 0f\n nop\n0: ret")
    assert [c.block.address for c in call_costs(code, {0: 1, 8: 1}, "cortex-a53")] == [0, 8]


def test_unknown_cores_and_instructions_are_told(llvm):
    """What the model does not know ends in its message."""
    with pytest.raises(ToolFailed, match="llvm-mca-19 failed"):
        model_blocks([block("frobnicate x0")], "cortex-a72")


def test_the_model_says_its_version(llvm):
    """Figures come with the version of the models that gave them."""
    assert llvm_version().startswith("19.")
