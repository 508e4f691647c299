"""Loops whose products a cycle are known: those of `Loop.rates` were read off the same models.

They are products by the three ways that NEON has: long multiplications, table look-ups, and dot
products. Each was compiled from C with intrinsics, and put into this form by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import attrs


@attrs.frozen
class Loop:
    """A loop's body and products; by core what it achieves, and what its units would allow."""

    name: str
    code: tuple[str, ...]
    products: int
    rates: Mapping[str, tuple[float, float]]


# 4 rows by 4 outputs, 16 values of k: int8 times int8 into sixteen int16 accumulators.
SMLAL_TOTALS = 23, 22, 21, 1, 20, 19, 2, 0, 18, 17, 5, 3, 7, 16, 6, 4
SMLAL_PAIRS = tuple(product((28, 29, 30, 31), (27, 26, 25, 24)))
SMLAL = Loop(
    "smlal",
    (
        "ldp q28, q29, [x1]",
        "add w8, w8, #0x10",
        "ldp q27, q26, [x0]",
        "cmp w8, w2",
        "ldp q25, q24, [x0, #0x20]",
        "add x0, x0, #0x40",
        "ldp q30, q31, [x1, #0x20]",
        "add x1, x1, #0x40",
        *(
            f"smlal v{total}.8h, v{w}.8b, v{x}.8b"
            for total, (x, w) in zip(SMLAL_TOTALS, SMLAL_PAIRS, strict=True)
        ),
        *(
            f"smlal2 v{total}.8h, v{w}.16b, v{x}.16b"
            for total, (x, w) in zip(SMLAL_TOTALS, SMLAL_PAIRS, strict=True)
        ),
        "b.lt .",
    ),
    256,
    {
        "cortex-a53": (5.6, 8.0),
        "cortex-a55": (4.6, 8.0),
        "cortex-a72": (8.0, 8.0),
        "neoverse-n1": (8.0, 8.0),
    },
)

# One row by 64 outputs, 4 values of k: each nibble looks up the sum of two products.
TBL_TOTALS = 16, 7, 6, 4, 3, 2, 1, 0
TBL_LOW, TBL_HIGH = (19, 22, 24, 25), (17, 18, 20, 21)
TBL_FOUND = 19, 22, 24, 23
TBL = Loop(
    "tbl",
    (
        "add x9, x0, x8, lsl #4",
        "add x8, x8, #0x4",
        "ldp q23, q26, [x1], #0x20",
        "cmp w8, w2",
        "ldp q17, q18, [x9]",
        "ldp q20, q21, [x9, #0x20]",
        *(
            f"and v{low}.16b, v{high}.16b, v5.16b"
            for low, high in zip(TBL_LOW, TBL_HIGH, strict=True)
        ),
        *(f"ushr v{high}.16b, v{high}.16b, #0x4" for high in TBL_HIGH),
        *(
            f"tbl v{found}.16b, {{ v23.16b }}, v{low}.16b"
            for found, low in zip(TBL_FOUND, TBL_LOW, strict=True)
        ),
        *(f"tbl v{high}.16b, {{ v26.16b }}, v{high}.16b" for high in TBL_HIGH),
        *(
            line
            for found in (TBL_FOUND, TBL_HIGH)
            for i, register in enumerate(found)
            for line in (
                "saddw v{0}.8h, v{0}.8h, v{1}.8b".format(TBL_TOTALS[2 * i], register),
                "saddw2 v{0}.8h, v{0}.8h, v{1}.16b".format(TBL_TOTALS[2 * i + 1], register),
            )
        ),
        "b.lt .",
    ),
    256,
    {
        "cortex-a53": (5.6, 8.0),
        "cortex-a55": (4.8, 8.5),
        "cortex-a72": (10.6, 10.7),
        "neoverse-n1": (16.0, 18.3),
    },
)

# 8 rows by 8 outputs, 8 values of k, four at a time.
SDOT_TOTALS = 23, 22, 21, 20, 19, 18, 7, 2, 17, 16, 6, 5, 4, 3, 1, 0


def _dots(weights: tuple[int, int], rows: tuple[int, int]) -> list[str]:
    lanes = product(rows, range(4), weights)
    return [
        f"sdot v{total}.4s, v{w}.16b, v{x}.4b[{lane}]"
        for total, (x, lane, w) in zip(SDOT_TOTALS, lanes, strict=True)
    ]


SDOT = Loop(
    "sdot",
    (
        "ldp q24, q25, [x0]",
        "ldp q26, q27, [x1]",
        *_dots((24, 25), (26, 27))[:12],
        "ldp q26, q28, [x0, #0x20]",
        *_dots((24, 25), (26, 27))[12:],
        "ldp q24, q25, [x1, #0x20]",
        *_dots((26, 28), (24, 25))[:13],
        "add w8, w8, #0x8",
        "add x0, x0, #0x40",
        *_dots((26, 28), (24, 25))[13:15],
        "add x1, x1, #0x40",
        "cmp w8, w2",
        *_dots((26, 28), (24, 25))[15:],
        "b.lt .",
    ),
    512,
    {"cortex-a55": (9.7, 16.0), "neoverse-n1": (31.9, 32.0)},
)
LOOPS = SMLAL, TBL, SDOT
