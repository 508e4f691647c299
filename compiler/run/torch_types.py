"""The dtypes of the IR as torch holds them."""

from __future__ import annotations

from functools import reduce

import torch

TORCH: dict[str, torch.dtype] = {
    "bool": torch.bool,
    "i8": torch.int8,
    "u8": torch.uint8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
    "ternary": torch.int8,
}
HALVES = frozenset({torch.float16, torch.bfloat16})


def widened(x: torch.Tensor) -> torch.Tensor:
    """Halves as float32."""
    return x.float() if x.dtype in HALVES else x


def held(x: torch.Tensor) -> torch.Tensor:
    """bf16 as float32, as the interpreter holds it: ops of several steps round it once."""
    return x.float() if x.dtype == torch.bfloat16 else x


def alike(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """``tensors`` in the narrowest dtype that holds them all."""
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors))
    return tuple(x.to(dtype) for x in tensors)
