"""What Triton compiles for each GPU has tensor cores, no spills, and fits its shared memory."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import triton

from butterflyc.kernels.gpu.launch import Launch

from .compiled import compiled
from .harness import GPU, KERNELS, layer_spec

OLD = replace(GPU, name="sm75", capability=75, multiprocessors=40, shared_bytes=65536)
AMPERE = replace(GPU, name="sm80", capability=80, multiprocessors=108, shared_bytes=166912)
SMALL = replace(GPU, name="sm86", capability=86, multiprocessors=84, shared_bytes=101376)
TENSOR_CORES = re.compile(r"\b(HMMA|HGMMA|IMMA|IGMMA)\b")
WITH_PRODUCTS = ("up_prefill", "up_decode", "down_decode", "fused_layer")
CASES = [
    ("gpu_library", 4096, 1024, 4096),
    ("gpu_prefill", 4096, 1024, 4096),
    ("gpu_decode", 8, 1024, 4096),
    ("gpu_decode", 32, 1024, 4096),
    ("gpu_fused", 4096, 256, 1024),
    ("gpu_fused", 8, 512, 2048),
]


def dump(cubin: Path, flag: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, flag, cubin], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("gpu", [OLD, AMPERE, SMALL, GPU], ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("bits", [0, 8])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}x{case[2]}")
def test_default_ways_compile_well(case, bits, gpu, tmp_path):
    """With default parameters: products by tensor cores, nothing on the stack, memory that fits."""
    name, tokens, channels, outputs = case
    kernel = KERNELS[name]
    spec = layer_spec(tokens, channels, outputs, dtype="f16", activation_bits=bits)
    if gpu is OLD and name != "gpu_library":
        assert not kernel.supports(spec, gpu)
        pytest.skip("Triton uses no tensor cores before Ampere")
    assert kernel.supports(spec, gpu)
    for step in kernel.build(spec, gpu, "layer").steps:
        if isinstance(step, Launch):
            code = compiled(step, gpu.capability)
            (tmp_path / "cubin").write_bytes(code.asm["cubin"])
            usage = dump(tmp_path / "cubin", "-res-usage")
            assert "STACK:0" in usage, f"{step.function} spills: {usage}"
            assert code.metadata.shared <= gpu.shared_bytes
            products = TENSOR_CORES.search(dump(tmp_path / "cubin", "-sass"))
            assert bool(products) == (step.function in WITH_PRODUCTS)
