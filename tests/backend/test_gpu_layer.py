"""The kernels of a whole layer, compiled for GPUs that are not here, and launched by a stand-in."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from butterflyc.compiler.ir.ops import OPS
from butterflyc.compiler.lower.cubin import Code, compile_all
from butterflyc.compiler.run.cuda_driver import Driver
from butterflyc.compiler.run.sass import resources
from butterflyc.kernels.gpu.launch import Gpu, Launch
from butterflyc.kernels.record import Spec, Tensor

from .stand_in import StandIn, built, passed

pytest.importorskip("triton")

GPUS = {80: Gpu(name="sm80", capability=80, shared_bytes=166912), 90: Gpu()}
# The instructions of tensor cores, and kernels that are to be made of them, by kernel record.
PRODUCTS = {80: "HMMA", 90: "HGMMA"}
KERNELS = {"gpu_prefill": (4096, "up_prefill"), "gpu_decode": (32, "up_decode")}


def layer(tokens: int, width: int = 256, outputs: int = 1024, experts: int = 8) -> Spec:
    operands = (
        Tensor("f16", (tokens, width)),
        Tensor("f16", (experts, width // 4, 4, 2)),
        Tensor("ternary", (outputs, width)),
        Tensor("f32", ()),
        Tensor("f32", (outputs,)),
        Tensor("f32", (tokens, 2)),
        Tensor("i64", (tokens, 2)),
        Tensor("f16", (experts, outputs // 4, 4, 2)),
        Tensor("f16", (width, outputs)),
    )
    attributes = OPS["butterfly_layer"].complete({"dtype": "f16", "activation": "gelu"})
    results = (Tensor("f16", (tokens, width)),)
    return Spec("butterfly_layer", tuple(sorted(attributes.items())), operands, results)


@cache
def launches(name: str, capability: int) -> tuple[Launch, ...]:
    from butterflyc.kernels.gpu import all_kernels

    kernel = next(kernel for kernel in all_kernels() if kernel.name == name)
    spec, gpu = layer(KERNELS[name][0]), GPUS[capability]
    assert kernel.supports(spec, gpu)
    steps = kernel.build(spec, gpu, "layer").steps
    return tuple(step for step in steps if isinstance(step, Launch))


@cache
def codes(capability: int) -> dict[str, Code]:
    return compile_all([x for name in KERNELS for x in launches(name, capability)], capability)


@pytest.mark.parametrize("capability", GPUS)
@pytest.mark.parametrize("name", KERNELS)
def test_products_are_of_tensor_cores(name, capability):
    """The product is made of the GPU's own instructions, and no kernel of the layer spills."""
    for launch in launches(name, capability):
        code = codes(capability)[launch.symbol]
        found = resources(code.cubin)
        assert found.spills == found.stack == 0, launch.function
        assert code.shared <= GPUS[capability].shared_bytes
        if launch.function == KERNELS[name][1]:
            assert found.count(PRODUCTS[capability]) > 0


@pytest.mark.parametrize("capability", GPUS)
def test_a_layer_is_launched(capability, tmp_path, needs_tool):
    """Every launch passes the driver as many parameters as its machine code reads, in order."""
    path: Path = built(tmp_path, needs_tool("cc", "gcc"))
    machine = StandIn(path)
    machine.set(capability=capability)
    driver = Driver(codes(capability).values(), machine.path)
    for name in KERNELS:
        for launch in launches(name, capability):
            buffers = [a.value for _, a in launch.arguments if a.is_buffer]
            addresses = {buffer: 256 * (i + 1) for i, buffer in enumerate(buffers)}
            driver.launch(launch, addresses)
            given = passed(machine.calls()[-1])
            wanted = [addresses.get(a.value, a.value) for _, a in launch.arguments]
            read = [int.from_bytes(value, "little") for value in given]
            assert read == [*wanted, 0, 0], launch.function
