"""Products are read off instructions, and a function is cut into before, product and behind."""

from __future__ import annotations

import pytest

from butterflyc.compiler.run.products import main_products, products_of, regions

from .assembly import assembled, block


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("sdot v0.4s, v1.16b, v2.16b", {"dot": 16}),
        ("sdot v0.4s, v1.16b, v2.4b[1]", {"dot": 16}),
        ("sdot v0.2s, v1.8b, v2.8b", {"dot": 8}),
        ("smlal v0.8h, v1.8b, v2.8b", {"long": 8}),
        ("smlal2 v0.8h, v1.16b, v2.16b", {"long": 8}),
        ("smull v0.8h, v1.8b, v2.8b", {"long": 8}),
        ("smlal v0.4s, v1.4h, v2.h[1]", {"long": 4}),
        ("mla v0.16b, v1.16b, v2.16b", {"byte": 16}),
        ("mul v0.16b, v1.16b, v2.16b", {"byte": 16}),
        ("tbl v0.16b, { v1.16b }, v2.16b", {"look-up": 32}),
        ("tbl v0.8b, { v1.16b }, v2.8b", {"look-up": 16}),
        ("fmla v0.4s, v1.4s, v2.s[1]", {"float": 4}),
        ("fmla v0.2s, v1.2s, v2.2s", {"float": 2}),
        ("fmadd s0, s1, s2, s3", {"float": 1}),
        ("fmadd d0, d1, d2, d3", {}),
        ("fmul v0.4s, v1.4s, v2.4s", {}),
        ("mul x0, x1, x2", {}),
    ],
)
def test_an_instruction_has_its_products(text, found):
    """Each form of each instruction counts as in the table; what only moves or scales has none."""
    assert products_of(block(text)) == found


def test_look_ups_beside_multiplications_unpack():
    """A table that is looked up for codes, which are then multiplied, adds no products."""
    look_up = "tbl v0.16b, { v1.16b }, v2.16b"
    code = block(look_up, "sdot v3.4s, v0.16b, v4.16b", "sdot v5.4s, v0.16b, v6.16b")
    assert products_of(code) == {"dot": 32}


def test_floats_and_integers_are_told_apart():
    """Of a block with both, each question is answered by its own products."""
    integers = "smlal v0.8h, v1.8b, v2.8b", "smull v3.8h, v1.8b, v2.8b"
    code = block("fmla v0.4s, v1.4s, v2.4s", *integers)
    assert (main_products(code, floats=True), main_products(code, floats=False)) == (4, 16)


def loop(number: int, body: str, counter: str = "x2") -> str:
    return f"{number}: {body}\n subs {counter}, {counter}, #1\n b.ne {number}b\n"


PRODUCT = "sdot v0.4s, v1.16b, v2.16b"
# As fused experts are: rows are rotated; then, strip by strip, tiles are unpacked and multiplied,
# their sums are stored, and a loop over rows makes results of them.
FUSED = (
    loop(1, "fmla v3.4s, v4.4s, v5.4s")
    + "2: mov x6, #4\n"  # a strip
    + "3: mov x2, #4\n"  # a tile
    + loop(4, "ushr v1.16b, v1.16b, #2")
    + loop(5, PRODUCT)
    + "str q0, [x0]\n subs x6, x6, #1\n b.ne 3b\n"
    + loop(6, "fmla v6.4s, v7.4s, v8.4s")
    + "subs x7, x7, #1\n b.ne 2b\n ret\n"
)


def parts(folder, text: str, floats: bool = False) -> dict[str, str]:
    """The part of each block, by its first instruction."""
    code = assembled(folder, text)
    found = regions(code, floats)
    return {code.blocks[a].instructions[0].text: part for a, part in found.items()}


def test_a_product_has_its_tiles(llvm, tmp_path):
    """Unpacking and storing are of the product; a loop behind it in the same strip is not."""
    assert parts(tmp_path, FUSED) == {
        "fmla v3.4s, v4.4s, v5.4s": "before",
        "mov x6, #0x4": "before",
        "mov x2, #0x4": "product",
        "ushr v1.16b, v1.16b, #0x2": "product",
        "sdot v0.4s, v1.16b, v2.16b": "product",
        "str q0, [x0]": "product",
        "fmla v6.4s, v7.4s, v8.4s": "behind",
        "subs x7, x7, #0x1": "behind",
        "ret": "behind",
    }


def test_what_stands_between_two_products_is_of_them(llvm, tmp_path):
    """Rows that fill a tile and the rest of them are two loops of one product."""
    text = "mov x2, #1\n" + loop(1, PRODUCT) + "mov x3, #2\n" + loop(2, PRODUCT, "x3") + "ret\n"
    found = parts(tmp_path, text)
    assert found["mov x2, #0x1"] == "before"
    assert found["mov x3, #0x2"] == found[PRODUCT] == "product"
    assert found["ret"] == "behind"


def test_a_product_needs_no_loop(llvm, tmp_path):
    """Unrolled as a whole it is the block that holds it."""
    text = f"cbz x0, 1f\n{PRODUCT}\n cbz x1, 1f\n nop\n1: ret\n"
    assert list(parts(tmp_path, text).values()) == ["before", "product", "behind", "behind"]


def test_without_products_all_is_before(llvm, tmp_path):
    """Where nothing multiplies floats, nothing is behind them."""
    assert set(parts(tmp_path, loop(1, PRODUCT) + "ret", floats=True).values()) == {"before"}
