"""The model of costs sends each size to the kernel that was made for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from butterflyc.kernels.gpu.launch import Gpu

from .harness import GPU, KERNELS, layer_spec

TURING = replace(GPU, name="sm75", capability=75, multiprocessors=40, shared_bytes=65536)


def cheapest(tokens, channels, outputs, gpu: Gpu = GPU, **options):
    """The kernel with the least cost for two experts a token."""
    spec = layer_spec(tokens, channels, outputs, **options)
    serving = [kernel for kernel in KERNELS.values() if kernel.supports(spec, gpu)]
    return min(serving, key=lambda kernel: kernel.cost(spec, gpu)).name


@pytest.mark.parametrize("tokens", [1, 32, 4096, 65536])
def test_narrow_layers_are_fused(tokens):
    """A layer of 256 channels is one kernel for any number of tokens."""
    assert cheapest(tokens, 256, 1024) == "gpu_fused"


@pytest.mark.parametrize("size", [(1024, 4096), (4096, 14336)])
@pytest.mark.parametrize("tokens", [1, 8, 32])
def test_few_tokens_of_wide_layers_read_codes(tokens, size):
    """Up to 32 tokens of a wide layer go to the kernel that reads 2-bit weights."""
    assert cheapest(tokens, *size) == "gpu_decode"


@pytest.mark.parametrize("bits", [0, 8])
@pytest.mark.parametrize("size", [(1024, 4096), (4096, 14336)])
@pytest.mark.parametrize("tokens", [512, 4096, 65536])
def test_many_tokens_of_wide_layers_stay_in_registers(tokens, size, bits):
    """Many tokens of a wide layer go to the kernel that writes no sums of rows."""
    assert cheapest(tokens, *size, activation_bits=bits) == "gpu_prefill"


@pytest.mark.parametrize("tokens", [1, 4096])
def test_old_gpus_use_the_library(tokens):
    """Where Triton has no tensor cores the library's products are taken."""
    assert cheapest(tokens, 1024, 4096, TURING) == "gpu_library"


def test_float32_uses_the_library():
    """Many float32 rows go to the library, whose products have no tensor cores either."""
    assert cheapest(4096, 1024, 4096, dtype="f32") == "gpu_library"
