"""Interpret what a GPU would run, and ask the op what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from butterflyc.compiler.ir.ops import OPS
from butterflyc.compiler.ir.ops.elementwise import cast
from butterflyc.kernels.gpu import all_kernels
from butterflyc.kernels.gpu.interpreted import interpret
from butterflyc.kernels.gpu.launch import Gpu
from butterflyc.kernels.gpu.layer import OPERANDS
from butterflyc.kernels.gpu.library import torch_dtype
from butterflyc.kernels.layout import pack
from butterflyc.kernels.record import Kernel, Spec, Tensor

Array = np.ndarray[Any, np.dtype[Any]]
NAME = "butterfly_layer"
GPU = Gpu()
# The relative errors allowed, by dtype of rows.
LIMITS = {"f32": 1e-5, "f16": 2e-3, "bf16": 1.6e-2}
KERNELS = {kernel.name: kernel for kernel in all_kernels() if NAME in kernel.ops}
kernels = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
NONE: Mapping[str, int] = MappingProxyType({})


def rounded(array: Array, dtype: str) -> Array:
    """The nearest numbers of ``dtype``, in float32."""
    return np.asarray(cast(array.astype(np.float32), dtype), np.float32)


class Call:
    """Operands of a layer by name, float32 where they are floats, and the dtype of each."""

    op = NAME
    names = OPERANDS

    def __init__(
        self,
        seed: int = 0,
        *,
        tokens: int = 5,
        chosen: int = 2,
        channels: int = 16,
        outputs: int = 32,
        experts: int = 3,
        down: int = 16,
        dtype: str = "f16",
        outer: str | None = None,
        pairs: str | None = None,
        numbers: str = "i64",
        per_output: bool = False,
        **attributes: Any,
    ) -> None:
        rng = np.random.default_rng(seed)
        outer, pairs = outer or dtype, pairs or ("f32" if dtype == "f32" else "f16")

        def floats(*shape: int) -> Array:
            return rng.standard_normal(shape).astype(np.float32)

        def angles(width: int) -> Array:
            angle = floats(experts, width // 4, 4)
            return np.stack([np.cos(angle), np.sin(angle)], -1)

        # Sums of `channels` products then have a deviation of about one.
        scale = np.abs(1 + 0.3 * floats(*([outputs] if per_output else []))) * 1.2 / channels**0.5
        self.attributes = OPS[self.op].complete({"dtype": dtype, **attributes})
        values = {
            "x": (floats(tokens, channels), outer),
            "pairs_in": (angles(channels), pairs),
            "w": (rng.integers(-1, 2, (outputs, channels)).astype(np.int8), "ternary"),
            "scale": (np.asarray(scale, np.float32), "f32"),
            "bias": (0.5 * floats(outputs), "f32"),
            "gates": (rng.random((tokens, chosen)).astype(np.float32), "f32"),
            "experts": (rng.integers(0, experts, (tokens, chosen)), numbers),
            "pairs_out": (angles(outputs), pairs),
        }
        if down:
            values["w_down"] = (floats(down, outputs) / outputs**0.5, dtype)
        self.dtypes = {name: dtype for name, (_, dtype) in values.items()}
        self.arrays = {
            name: rounded(array, dtype) if dtype in ("f16", "bf16") else array
            for name, (array, dtype) in values.items()
        }
        self.outer = outer

    def wanted(self, **changes: Any) -> Array:
        """What the op means, with some attributes changed."""
        arrays = [self.arrays[name] for name in self.names if name in self.arrays]
        return OPS[self.op].meaning(*arrays, **{**self.attributes, **changes})

    def spec(self, parameters: Mapping[str, int] = NONE) -> Spec:
        operands = tuple(Tensor(self.dtypes[n], a.shape) for n, a in self.arrays.items())
        result = Tensor(self.outer, self.wanted().shape)
        attributes = tuple(sorted(self.attributes.items()))
        return Spec(self.op, attributes, operands, (result,), tuple(sorted(parameters.items())))

    def buffers(self, kernel: Kernel, spec: Spec, gpu: Gpu) -> dict[str, torch.Tensor]:
        """All operands packed and in their dtypes, and results and scratch that hold no number."""
        layouts = kernel.layouts(spec, gpu)
        tensors = {}
        for i, (name, array) in enumerate(self.arrays.items()):
            value = pack(layouts[i], array) if i in layouts else array
            dtype = "u8" if self.dtypes[name] == "ternary" else self.dtypes[name]
            tensors[name] = torch.from_numpy(np.ascontiguousarray(value)).to(torch_dtype(dtype))
        written = {"y": spec.results[0]}
        written |= {f"scratch{i}": t for i, t in enumerate(kernel.scratch(spec, gpu))}
        return tensors | {name: poison(tensor) for name, tensor in written.items()}


def layer_spec(tokens: int, channels: int, outputs: int, **options: Any) -> Spec:
    """A layer of any size with two experts a token, for which there are no numbers."""
    spec = Call(channels=4, outputs=4, down=4, activation="gelu", **options).spec()
    shapes = (
        (tokens, channels), (3, channels // 4, 4, 2), (outputs, channels), (), (outputs,),
        (tokens, 2), (tokens, 2), (3, outputs // 4, 4, 2), (channels, outputs),
    )  # fmt: skip
    operands = [replace(t, shape=s) for t, s in zip(spec.operands, shapes, strict=True)]
    result = Tensor(spec.results[0].dtype, (tokens, channels))
    return replace(spec, operands=tuple(operands), results=(result,))


def poison(tensor: Tensor) -> torch.Tensor:
    """NaN, or the integers whose bits are all ones but the sign."""
    dtype = torch_dtype(tensor.dtype)
    value = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max
    return torch.full(tensor.shape, value, dtype=dtype)


def run(kernel: Kernel, call: Call, gpu: Gpu, parameters: Mapping[str, int] = NONE) -> Array:
    """What the kernel makes of the call, in float32."""
    spec = call.spec(parameters)
    layouts = kernel.layouts(spec, gpu)
    operands = [replace(t, layout=layouts.get(i)) for i, t in enumerate(spec.operands)]
    spec = replace(spec, operands=tuple(operands))
    # Most kernels leave float32, of which there are no tensor cores, to the library. Interpreted,
    # they show in it that halves differ by their rounding alone.
    served = kernel.supports(spec, gpu) or call.attributes["dtype"] == "f32"
    assert served, f"{kernel.name} does not serve {spec}"
    buffers = call.buffers(kernel, spec, gpu)
    interpret(kernel.build(spec, gpu, "layer"), buffers)
    return buffers["y"].float().numpy()


def error(result: Array, wanted: Array) -> float:
    """The norm of the difference, relative to that of what is wanted."""
    wanted = wanted.astype(np.float64)
    return float(np.linalg.norm(result - wanted) / np.linalg.norm(wanted))


def check(
    kernel: Kernel,
    call: Call,
    parameters: Mapping[str, int] = NONE,
    limit: float | None = None,
) -> Array:
    """What the kernel makes of the call, which agrees with the op."""
    if kernel.name == "gpu_fused" and "w_down" not in call.arrays:
        assert not kernel.supports(call.spec(), GPU)
        pytest.skip("the fused kernel is for layers with w_down")
    result = run(kernel, call, GPU, parameters)
    assert error(result, call.wanted()) < (limit or LIMITS[call.attributes["dtype"]])
    return result
