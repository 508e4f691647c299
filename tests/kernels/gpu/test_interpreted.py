"""Interpreting plans leaves Triton as it was, so that one process interprets and compiles."""

from __future__ import annotations

import numpy as np
import pytest
import triton
import triton.language as tl

from butterflyc.kernels.gpu.launch import Fill, Launch

from .first_form import triton_ir
from .harness import GPU, KERNELS, Call, check, kernels, run

PLACES = (tl, tl.core, tl.math, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base)


def launches(kernel, call, parameters=None):
    plan = kernel.build(call.spec(parameters or {}), GPU, "layer")
    return [step for step in plan.steps if isinstance(step, Launch)]


def test_triton_is_as_it_was():
    """No function of Triton is another one after a plan was interpreted."""
    before = [dict(vars(place)) for place in PLACES]
    call = Call()
    for kernel in KERNELS.values():
        run(kernel, call, GPU)
    assert [dict(vars(place)) for place in PLACES] == before
    assert not triton.knobs.runtime.interpret


def test_triton_is_as_it_was_after_an_error(monkeypatch):
    """Nor after one that failed."""
    before = [dict(vars(place)) for place in PLACES]
    kernel, call = KERNELS["gpu_decode"], Call(dtype="bf16")
    # The interpreter of Triton has no inline assembly, so it fails where that is left on.
    monkeypatch.setattr("butterflyc.kernels.gpu.interpreted.INTERPRETED", {})
    with pytest.raises(triton.runtime.interpreter.InterpreterError, match="inline_asm"):
        run(kernel, call, GPU)
    assert [dict(vars(place)) for place in PLACES] == before


@kernels
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("bits", [0, 8])
def test_kernels_compile_after_being_interpreted(kernel, dtype, bits):
    """Every launch becomes Triton's IR, with inline assembly where halves allow it."""
    call = Call(dtype=dtype, activation="gelu", chosen=3, activation_bits=bits, outer="f32")
    run(kernel, call, GPU)
    text = "".join(triton_ir(launch, 90) for launch in launches(kernel, call))
    assert ("tanh.approx" in text) == (dtype != "f32")
    assert ("tt.dot" in text) == (kernel.name != "gpu_library")


@kernels
def test_every_way_compiles(kernel):
    """Every choice of parameters, and every form of operands, becomes Triton's IR."""
    order = (0, 2, 1, 3, 3, 1, 0, 2)
    forms = {"per_output": True, "activate_last": True, "order_in": order, "order_out": order}
    call = Call(channels=256, outputs=512, down=128, activation="silu", numbers="i32", **forms)
    for parameters in kernel.space(call.spec(), GPU):
        for launch in launches(kernel, call, parameters):
            assert "tt.func" in triton_ir(launch, 80)


def test_parts_added_as_they_come():
    """With atomic additions the result starts from zero, and agrees with the op."""
    kernel, call = KERNELS["gpu_decode"], Call(outputs=512, dtype="f16", outer="f32")
    parameters = {"atomic": 1, "parts": 4}
    plan = kernel.build(call.spec(parameters), GPU, "layer")
    assert Fill("y") in plan.steps
    check(kernel, call, parameters)


def test_halves_are_not_added_as_they_come():
    """A result of halves has its parts added in float32, whatever the parameter says."""
    kernel, call = KERNELS["gpu_decode"], Call(outputs=512, dtype="f16")
    plan = kernel.build(call.spec({"atomic": 1, "parts": 4}), GPU, "layer")
    assert not any(isinstance(step, Fill) for step in plan.steps)
    np.testing.assert_array_equal(
        check(kernel, call, {"atomic": 1, "parts": 4}), check(kernel, call, {"parts": 4})
    )
