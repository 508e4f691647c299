"""The papers' arithmetic gives the digits that they print, and is that of our modules."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from butterflyc.models.butterfly import ButterflyConfig
from butterflyc.models.rotation import padded_width as padded_width_of_models
from butterflyc.models.vit import ViT, butterfly_vit, dense_vit, standard_vit
from butterflyc.paper.accounting import (
    BUTTERFLY_MOE,
    BUTTERFLY_VIT,
    HALF_BITS,
    MB,
    MIB,
    TERNARY_BITS,
    Mlp,
    Stack,
    butterfly_bytes,
    compression,
    equation_11_bytes,
    expert_bytes,
    experts_that_fit,
    limit_by_table_2,
    limit_printed,
    millijoules,
    padded_width,
    picojoules_per_bit,
    rounded,
    standard_bytes,
    truncated,
    vit_parameters,
)

ONE_LAYER = Stack(d_model=256, d_ff=1024, layers=1, layers_in=2, layers_out=2)


@pytest.mark.parametrize(
    ("experts", "standard", "butterfly", "ratio"),
    [
        (8, "117.44", "0.64", "181"),
        (16, "234.88", "0.93", "251"),
        (32, "469.76", "1.50", "311"),
        (64, "939.52", "2.65", "354"),
    ],
)
def test_table_2(experts: int, standard: str, butterfly: str, ratio: str) -> None:
    """7 layers, up and down against W_hat and fp32 angles: MB truncated, ratios rounded."""
    assert truncated(standard_bytes(BUTTERFLY_VIT, experts) / MB, 2) == standard
    assert truncated(butterfly_bytes(BUTTERFLY_VIT, experts) / MB, 2) == butterfly
    assert rounded(compression(BUTTERFLY_VIT, experts)) == ratio


@pytest.mark.parametrize(
    ("experts", "standard", "butterfly", "ratio"),
    [
        (8, "32.00", "0.40", "79.1"),
        (16, "64.00", "0.61", "104.65"),
        (64, "256.00", "1.85", "138.10"),
        (256, "1,024.00", "6.82", "150.09"),
    ],
)
def test_150_times_at_256_experts(experts: int, standard: str, butterfly: str, ratio: str) -> None:
    """One layer, the up-projection alone, fp16 angles: MiB and ratios as the author prints them."""
    assert rounded(standard_bytes(BUTTERFLY_MOE, experts, matrices=1) / MIB, 2) == standard
    size = butterfly_bytes(BUTTERFLY_MOE, experts, angle_bits=HALF_BITS)
    assert rounded(size / MIB, 2) == butterfly
    found = compression(BUTTERFLY_MOE, experts, matrices=1, angle_bits=HALF_BITS)
    assert rounded(found, len(ratio.partition(".")[2])) == ratio


@pytest.mark.parametrize(
    ("mlp", "count", "make"),
    [
        ("butterfly", 5_661_028, butterfly_vit),
        ("standard", 31_351_140, standard_vit),
        ("dense", 5_583_972, dense_vit),
    ],
)
def test_table_1_parameters(mlp: Mlp, count: int, make: Callable[[], ViT]) -> None:
    """The closed form gives Table 1's counts, which are those of our modules."""
    assert vit_parameters(mlp) == count
    assert sum(parameter.numel() for parameter in make().parameters()) == count


def test_angles_are_those_of_the_models() -> None:
    """An expert owns as many angles as the layer gives it, where widths are padded too."""
    config = ButterflyConfig(d_model=48, d_ff=100, layers_in=3, layers_out=2)
    stack = Stack(48, 100, layers=4, layers_in=3, layers_out=2)
    assert stack.angles == 4 * (config.rotation_in.angles + config.rotation_out.angles)
    for width in range(1, 70):
        assert padded_width(width) == padded_width_of_models(width)


def test_ratios_that_count_w_down() -> None:
    """At 64 experts 94 with W_down in fp32, 502 with a ternary one and fp16 angles."""
    assert rounded(compression(BUTTERFLY_VIT, 64, down_bits=32)) == "94"
    ternary = compression(BUTTERFLY_VIT, 64, down_bits=TERNARY_BITS, angle_bits=HALF_BITS)
    assert rounded(ternary) == "502"


def test_expert_bytes_three_ways() -> None:
    """An expert of one layer: 10,240 B by eq. 11, 5,120 by Table 2, 2,560 by eq. 11's text."""
    assert equation_11_bytes(ONE_LAYER) == 10_240
    assert expert_bytes(ONE_LAYER) == 5_120
    assert expert_bytes(ONE_LAYER, HALF_BITS) == 2_560


def test_limits_of_proposition_2() -> None:
    """What Proposition 2 prints as an expression is 102.4; 409.6 is what Table 2's counts give."""
    assert limit_printed(BUTTERFLY_VIT) == pytest.approx(102.4)
    assert limit_by_table_2(BUTTERFLY_VIT) == pytest.approx(409.6)
    assert compression(BUTTERFLY_VIT, 10**9) == pytest.approx(409.6, rel=1e-6)


def test_energy_of_one_read() -> None:
    """939.5 MB at 6.4 pJ a bit are 48.1 mJ; 256 MB are 13.1."""
    assert rounded(millijoules(standard_bytes(BUTTERFLY_VIT, 64)), 1) == "48.1"
    assert rounded(millijoules(256 * MB), 1) == "13.1"
    assert picojoules_per_bit(millijoules(1000), 1000) == pytest.approx(6.4)


def test_experts_that_fit() -> None:
    """As many as there is room for; none where not even the shared part fits."""
    assert experts_that_fit(100, 40, 20) == 3
    assert experts_that_fit(99, 40, 20) == 2
    assert experts_that_fit(30, 40, 20) == 0


def test_printed_forms() -> None:
    """Truncation cuts, rounding takes halves up; thousands have commas."""
    assert truncated(2.659, 2) == "2.65"
    assert rounded(2.655, 2) == "2.66"
    assert rounded(1234.5) == "1,235"
