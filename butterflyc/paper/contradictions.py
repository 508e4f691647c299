"""Where the papers' figures contradict their formulas, or each other: one row each."""

from __future__ import annotations

from .accounting import (
    BUTTERFLY_MOE,
    BUTTERFLY_VIT,
    GIB,
    HALF_BITS,
    KIB,
    MB,
    MIB,
    Stack,
    butterfly_bytes,
    compression,
    equation_11_bytes,
    expert_bytes,
    experts_that_fit,
    limit_by_table_2,
    limit_printed,
    millijoules,
    picojoules_per_bit,
    rounded,
    standard_bytes,
)
from .devices import fitting
from .rows import Row, Table

ONE_LAYER = Stack(d_model=256, d_ff=1024, layers=1, layers_in=2, layers_out=2)


def contradictions() -> Table:
    """All of them. ``formula`` is what the claim should say by the papers' own arithmetic."""
    rows = (*_of_compression(), *_of_an_expert(), *_of_sizes(), *_of_devices())
    note = (
        "`formula` is what the claim should say. Claims are ButterflyViT's where no paper is named."
    )
    return Table("contradictions", "Claims that their own formulas do not give", note, rows)


def _of_compression() -> tuple[Row, ...]:
    stack = BUTTERFLY_VIT
    whole = compression(stack, 64, down_bits=32)
    return (
        _row(
            "w-down",
            "compression at 64 experts",
            ("times", "354", whole, 0),
            "W_down is left out of ButterflyViT's bytes and counted in StandardMoE's. With W_down "
            "in fp32 it is this; ternary, with fp16 angles, 502.",
        ),
        _row(
            "proposition-2",
            "Prop. 2: limit of many experts",
            ("times", "409", limit_printed(stack), 1),
            "The printed expression divides one fp32 matrix by an expert of eq. 11. 409 is "
            f"{limit_by_table_2(stack):.1f}: two matrices over Table 2's expert.",
        ),
    )


def _of_an_expert() -> tuple[Row, ...]:
    eq_11, half = equation_11_bytes(ONE_LAYER), expert_bytes(ONE_LAYER, HALF_BITS)
    return (
        _row(
            "expert-bytes-equation",
            "eq. 11: an expert of one layer",
            ("B", "10,240", eq_11, 0),
            "As n_l (d + F) fp32 numbers give: two for each pair of channels, which has one angle.",
        ),
        _row(
            "expert-bytes-text",
            "the text under eq. 11: the same",
            ("B", "2,560", half, 0),
            "n_l (d + F) / 2 angles in fp16: a quarter of what eq. 11 gives.",
        ),
        _row(
            "expert-bytes-table",
            "Table 2: the same",
            ("B", "5,120", expert_bytes(ONE_LAYER), 0),
            "n_l (d + F) / 2 angles in fp32: what Table 2's MB come from.",
        ),
    )


def _of_sizes() -> tuple[Row, ...]:
    vit, moe = BUTTERFLY_VIT, BUTTERFLY_MOE
    standard = standard_bytes(vit, 64)
    return (
        _row(
            "one-layer",
            "memory at 64 experts, beside Table 2's",
            ("MB", "0.379", butterfly_bytes(vit, 64) / MB, 3),
            f"0.379 is one layer ({butterfly_bytes(ONE_LAYER, 64) / MB:.4f}); the model has 7.",
        ),
        _row(
            "dense",
            "memory of the dense model's MLPs",
            ("MB", "117.44", standard_bytes(vit, 1) / MB, 2),
            "117.44 is StandardMoE with 8 experts; a dense model has one MLP a layer.",
        ),
        _row(
            "a-layer",
            'introduction: "a ViT layer with 64 experts"',
            ("MB", "939", standard_bytes(ONE_LAYER, 64) / MB, 1),
            "939 is all 7 layers.",
        ),
        _row(
            "two-bits",
            "introduction: StandardMoE in 2 bits, a layer of 64 experts",
            ("MB", "hundreds", standard_bytes(ONE_LAYER, 64, bits=2) / MB, 2),
            f"All 7 layers take {standard_bytes(vit, 64, bits=2) / MB:.1f} MB in 2 bits.",
        ),
        _row(
            "moe-two-bits",
            "ButterflyMoE's introduction: 2 bits, a layer of 256 experts",
            ("MiB", "128", standard_bytes(moe, 256, matrices=1, bits=2) / MIB, 0),
            "Up and down take 128; the 256 MB of its 64 experts in fp32, and its 150 times, count "
            "the up-projection only.",
        ),
        _row(
            "project-page",
            "the author's project page: ButterflyMoE's 256 experts",
            ("MiB", "4.7", butterfly_bytes(moe, 256, angle_bits=HALF_BITS) / MIB, 2),
            "Beside 1 GB it calls this 150 times less, which is what 6.82 give.",
        ),
        _row(
            "energy",
            "StandardMoE, 64 experts: energy of a forward pass",
            ("mJ", "13 and 90", millijoules(standard), 1),
            "6.4 pJ a bit of 939.5 MB. 13 is what 256 MB take, the size of ButterflyMoE's layer; "
            f"90 would be {picojoules_per_bit(90, standard):.1f} pJ a bit.",
        ),
    )


def _of_devices() -> tuple[Row, ...]:
    esp32s3, nano = fitting(512 * KIB), fitting(256 * KIB)
    standard = experts_that_fit(4 * GIB, 0, standard_bytes(BUTTERFLY_MOE, 1, matrices=1))
    return (
        _row(
            "four-gigabytes",
            "ButterflyMoE's first abstract: StandardMoE's experts on 4 GB",
            ("experts", "8", standard, 0),
            "Experts of one layer, up-projection in fp32; 4 layers leave a quarter of them. "
            "The same sentence has 64 for ButterflyMoE, which would take 1.9 MB; later versions "
            "of the abstract leave it out.",
        ),
        _row(
            "esp32s3",
            "experts on an ESP32-S3, 512 KiB of RAM",
            ("experts", "3-6", esp32s3["equation-11"], 0),
            f"By eq. 11; {esp32s3['table-2']} by Table 2's bytes, {esp32s3['text']} by the text. "
            "Weights can be read from flash, where far more fit.",
        ),
        _row(
            "nano-33",
            "experts on an Arduino Nano 33, 256 KiB of RAM",
            ("experts", "3-6", nano["equation-11"], 0),
            "W_hat alone takes 362 KB, by any of the three ways.",
        ),
    )


def _row(key: str, what: str, claim: tuple[str, str, float, int], why: str) -> Row:
    unit, paper, value, digits = claim
    shown = rounded(value, digits)
    return Row(f"contradictions.{key}", what, unit, paper, value, shown, why)
