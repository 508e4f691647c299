"""The rows of the report: each claim beside what its formula gives."""

from __future__ import annotations

import pytest

from butterflyc.compiler.errors import UnknownName
from butterflyc.paper.contradictions import contradictions
from butterflyc.paper.devices import devices, figure_6, fitting, fitting_flash
from butterflyc.paper.rows import Row, Table, with_measured
from butterflyc.paper.tables import figure_4, figure_7, moe_150, table_1, table_2, whole_ffn
from butterflyc.targets.registry import load_core

TABLES = (
    table_1(),
    table_2(),
    whole_ffn(),
    moe_150(),
    figure_4(),
    figure_6(),
    figure_7(),
    contradictions(),
)


def shown(table: Table) -> dict[str, str | None]:
    """What the formulas give, by the keys of the rows without that of the table."""
    return {row.key.partition(".")[2]: row.shown for row in table.rows}


def test_rows_are_whole() -> None:
    """Every key is there once, every row says why, and what is shown is what was computed."""
    rows = [row for table in TABLES for row in table.rows]
    assert len({row.key for row in rows}) == len(rows)
    for table in TABLES:
        assert all(row.key.startswith(f"{table.key}.") for row in table.rows)
    for row in rows:
        assert all((row.what, row.unit, row.why.endswith(".")))
        assert (row.formula is None) == (row.shown is None)
        assert row.measured is None


@pytest.mark.parametrize("table", [table_1(), moe_150()], ids=lambda table: table.key)
def test_formulas_give_what_is_printed(table: Table) -> None:
    """Table 1's parameters and the 150 times come out to the digit, but for a rounded quotient."""
    for row in table.rows:
        if row.paper is not None and row.key != "moe.8.ratio":
            assert row.shown == row.paper, row.key


def test_table_2_gives_the_digits_that_are_known() -> None:
    """939 MB, cut off further in the introduction, and 354 times."""
    known = {row.key: (row.paper, row.shown) for row in table_2().rows if row.paper}
    assert known == {"table2.64.standard": ("939", "939.52"), "table2.64.ratio": ("354", "354")}


def test_whole_ffn() -> None:
    """With W_down counted the ratio is 94, or up to 724 where everything is as small as can be.

    Routers on both sides make it less.
    """
    assert shown(whole_ffn()) == {
        "paper": "354",
        "down-f32": "94",
        "down-int8": "281",
        "down-int8.router": "272",
        "down-ternary": "502",
        "down-ternary.router": "473",
        "down-int8-angles8": "339",
        "down-int8-angles8.router": "326",
        "down-ternary-angles8": "724",
        "down-ternary-angles8.router": "665",
    }


def test_contradictions() -> None:
    """Each claim, and what the papers' own arithmetic gives for it."""
    found = {row.key.partition(".")[2]: (row.paper, row.shown) for row in contradictions().rows}
    assert found == {
        "w-down": ("354", "94"),
        "proposition-2": ("409", "102.4"),
        "expert-bytes-equation": ("10,240", "10,240"),
        "expert-bytes-text": ("2,560", "2,560"),
        "expert-bytes-table": ("5,120", "5,120"),
        "one-layer": ("0.379", "2.656"),
        "dense": ("117.44", "14.68"),
        "a-layer": ("939", "134.2"),
        "two-bits": ("hundreds", "8.39"),
        "moe-two-bits": ("128", "64"),
        "project-page": ("4.7", "6.82"),
        "energy": ("13 and 90", "48.1"),
        "four-gigabytes": ("8", "1,024"),
        "esp32s3": ("3-6", "2"),
        "nano-33": ("3-6", "0"),
    }


def test_what_contradictions_say_of_figures() -> None:
    """The figures in their reasons come out of the same arithmetic."""
    why = {row.key.partition(".")[2]: row.why for row in contradictions().rows}
    assert "409.6" in why["proposition-2"]
    assert "(0.3795)" in why["one-layer"]
    assert "58.7 MB" in why["two-bits"]
    assert "12.0 pJ" in why["energy"]
    assert "4 by Table 2's bytes, 9 by the text" in why["esp32s3"]


def test_energy() -> None:
    """64 experts of StandardMoE take 48.1 mJ, Butterfly's as counted 0.136."""
    found = shown(figure_7())
    assert found["standard"] == "48.104"
    assert found["butterfly"] == "0.136"
    assert found["down-f32"] == "0.512"


def test_memory_grows_by_little() -> None:
    """One more expert takes 35,840 bytes in 7 layers."""
    assert shown(figure_4())["each"] == "0.0358"


def test_devices_have_the_memories_of_our_boards() -> None:
    """The microcontrollers' RAM and flash are those of their files of targets."""
    found = {device.key: device for device in devices()}
    for name in ("esp32s3", "nrf52840"):
        core = load_core(name)
        sram, flash = core.memory("sram"), core.memory("flash")
        assert sram is not None
        assert flash is not None
        assert (found[name].ram, found[name].flash) == (sram.nominal, flash.usable)


def test_experts_on_microcontrollers() -> None:
    """None of the three ways gives 3 to 6 experts on both; flash holds far more on an ESP32-S3."""
    esp32s3, nano = fitting(512 << 10), fitting(256 << 10)
    assert esp32s3 == {"standard": 0, "equation-11": 2, "table-2": 4, "text": 9}
    assert set(nano.values()) == {0}
    assert fitting_flash(7_864_320) == 316
    assert fitting_flash(851_968) == 0


def test_measurements_go_into_their_rows() -> None:
    """A measurement stands in the row of its key, others stay; a key of no row is told."""
    row = Row("t.a", "a", "MB", "1", 1.0, "1", "Same.")
    table = Table("t", "T", "", (row, Row("t.b", "b", "MB", None, None, None, "New.", 3.0)))
    (filled,) = with_measured([table], {"t.a": 2.5})
    assert [each.measured for each in filled.rows] == [2.5, 3.0]
    assert row.measured is None
    with pytest.raises(UnknownName, match=r"unknown row of the report 't\.c'"):
        with_measured([table], {"t.c": 1.0})
