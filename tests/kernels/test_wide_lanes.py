"""The ternary kernels serve a record unlike scalar and AVX2: its two kinds of vectors differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from butterflyc.kernels import butterfly_experts, ternary_dot, ternary_matmul
from butterflyc.kernels.lanes import Lanes, Load
from butterflyc.kernels.tir import broadcast, cast

from .harness import TARGETS
from .meaning import blocks, floats, meaning, relative_error, results_of, ternary


@dataclass(frozen=True)
class Wide(Lanes):
    """Four floats, but sixteen outputs of one k: NEON without dot products, in plain arithmetic."""

    name: str = "wide"
    float_lanes: int = 4
    ternary_outputs: int = 16
    ternary_lanes: int = 16
    ternary_accumulator: str = "int16"
    ternary_block: int = 128
    ternary_tile_rows: int = 2
    ternary_tile_vectors: int = 2

    def ternary_activations(self, load: Load, first: Any, plane: int) -> Any:
        return cast("int16", broadcast(load(first + plane, 1), 16), 16)

    def ternary_mac(self, total: Any, codes: Any, activations: Any) -> Any:
        return total + cast("int16", codes, 16) * activations

    def ternary_flush(self, total: Any) -> Any:
        return cast("int32", total, 16)


@pytest.fixture(autouse=True)
def target(monkeypatch):
    monkeypatch.setitem(TARGETS, "wide", TARGETS["scalar"])


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize(("outputs", "depth"), [(16, 128), (41, 301)])
def test_products_agree(rows, outputs, depth):
    """Both products are right where a vector of weights is several vectors of floats."""
    rng = np.random.default_rng(rows)
    w = ternary(rng, outputs, depth)
    codes = np.full((rows, depth), 127, np.int8)
    (result,) = results_of(ternary_dot.KERNEL, "ternary_dot", [codes, w], Wide())
    np.testing.assert_array_equal(result, meaning("ternary_dot", [codes, w])[0])
    arrays = [floats(rng, rows, depth), w, floats(rng, outputs)]
    (result,) = results_of(ternary_matmul.KERNEL, "ternary_matmul", arrays, Wide())
    wanted = meaning("ternary_matmul", arrays, double=True)[0]
    assert relative_error(result, wanted) < 1e-5


@pytest.mark.parametrize("bits", [0, 8])
@pytest.mark.parametrize("apart", [1, 4])
def test_experts_agree(bits, apart):
    """So is the fused layer."""
    rng = np.random.default_rng(0)
    arrays = [
        floats(rng, 9, 64),
        blocks(rng, 3, 16, 4),
        ternary(rng, 48, 64),
        np.asarray(np.float32(0.05)),
        floats(rng, 48),
        floats(rng, 9, 2),
        rng.integers(0, 3, (9, 2)),
        blocks(rng, 3, 12, 4),
    ]
    attributes = {"activation": "gelu", "activation_bits": bits}
    attributes |= {"lanes_in": apart, "lanes_out": apart}
    kernel = butterfly_experts.KERNEL
    (result,) = results_of(kernel, "butterfly_experts", arrays, Wide(), attributes)
    (wanted,) = meaning("butterfly_experts", arrays, attributes, double=True)
    assert relative_error(result, wanted) < (1e-3 if bits else 1e-5)
