"""The steps of a plan that are no launches, and the list of records."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from butterflyc.kernels import all_kernels as kernels_of_cpus
from butterflyc.kernels.gpu import all_kernels
from butterflyc.kernels.gpu.launch import Fill, Product
from butterflyc.kernels.gpu.library import fill, product


@pytest.mark.parametrize("rows", [1, 16, 17, 40])
def test_integer_products_are_exact(rows):
    """Any number of rows of codes, with the largest sums that there are."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (rows, 64)).astype(np.int8)
    weights = rng.integers(-1, 2, (24, 64)).astype(np.int8)
    codes[0], weights[0] = 127, 1
    buffers = {"rows": torch.from_numpy(codes), "weights": torch.from_numpy(weights)}
    buffers["out"] = torch.full((rows, 24), 7, dtype=torch.int32)
    product(Product("rows", "weights", "out"), buffers)
    wanted = codes.astype(np.int32) @ weights.T.astype(np.int32)
    np.testing.assert_array_equal(buffers["out"].numpy(), wanted)


@pytest.mark.parametrize(("outputs", "depth"), [(24, 60), (20, 64)])
def test_integer_products_of_odd_sizes_are_refused(outputs, depth):
    """Sizes that a library's product of int8 does not take are an error that says what to do."""
    buffers = {
        "rows": torch.zeros(3, depth, dtype=torch.int8),
        "weights": torch.zeros(outputs, depth, dtype=torch.int8),
        "out": torch.zeros(3, outputs, dtype=torch.int32),
    }
    with pytest.raises(ValueError, match=rf"\[3, {depth}\].*pad N and K to multiples of 8"):
        product(Product("rows", "weights", "out"), buffers)


@pytest.mark.parametrize("out", [torch.float16, torch.float32])
def test_products_of_halves_add_up_in_float32(out):
    """4096 halves of 1/16, which halves would stop adding at 128."""
    buffers = {
        "rows": torch.full((2, 4096), 1 / 16, dtype=torch.float16),
        "weights": torch.ones(3, 4096, dtype=torch.float16),
        "out": torch.full((2, 3), float("nan"), dtype=out),
    }
    product(Product("rows", "weights", "out"), buffers)
    assert buffers["out"].tolist() == [[256.0] * 3] * 2


def test_fill_is_zero():
    """All of the buffer, whatever was in it."""
    buffers = {"y": torch.full((3, 5), float("nan"))}
    fill(Fill("y"), buffers)
    assert not buffers["y"].any()


def test_records_are_listed_by_name():
    """Five ways to compute a layer, none of which is a kernel of CPUs."""
    names = [kernel.name for kernel in all_kernels()]
    assert names == ["gpu_decode", "gpu_deep_library", "gpu_fused", "gpu_library", "gpu_prefill"]
    ops = {kernel.name: kernel.ops for kernel in all_kernels()}
    assert ops.pop("gpu_deep_library") == ("butterfly_deep_layer",)
    assert set(ops.values()) == {("butterfly_layer",)}
    assert not set(names) & {kernel.name for kernel in kernels_of_cpus()}
