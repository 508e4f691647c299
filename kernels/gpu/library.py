"""Executes the steps of a plan that are no launches, on tensors of PyTorch on any device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .launch import Fill, Product, Unpack

if TYPE_CHECKING:
    import torch

# The device's product of int8 wants more than 16 rows, and sizes in multiples of 8.
LEAST_ROWS, MULTIPLE = 17, 8


def torch_dtype(name: str) -> torch.dtype:
    """PyTorch's dtype of an IR's."""
    import torch

    return {
        "f16": torch.float16,
        "bf16": torch.bfloat16,
        "f32": torch.float32,
        "i8": torch.int8,
        "u8": torch.uint8,
        "i32": torch.int32,
        "i64": torch.int64,
    }[name]


def execute(step: Product | Fill, buffers: Mapping[str, torch.Tensor]) -> None:
    """Executes one step, by the names of its buffers."""
    if isinstance(step, Product):
        product(step, buffers)
    else:
        fill(step, buffers)


def unpack(step: Unpack, buffers: dict[str, torch.Tensor]) -> None:
    """Makes the dense copy, and the buffer that holds it."""
    import torch

    codes = buffers[step.source]
    shifts = torch.tensor([6, 4, 2, 0], dtype=torch.uint8, device=codes.device)
    code = (codes[..., None] >> shifts & 3).to(torch.int8)
    weights = (code & 1) * (1 - (code & 2))  # [N, K / 4, 4]
    weights = weights.transpose(1, 2) if step.planar else weights
    buffers[step.target] = weights.reshape(step.shape).to(torch_dtype(step.dtype))


def product(step: Product, buffers: Mapping[str, torch.Tensor]) -> None:
    """``out = rows @ weights.T``."""
    import torch

    rows, weights, out = (buffers[name] for name in (step.rows, step.weights, step.out))
    if rows.dtype == torch.int8:
        out.copy_(_integer_product(rows, weights))
    elif rows.device.type == "cpu":
        # In float32, as a GPU adds up: a CPU would round sums of halves on the way.
        out.copy_(rows.float() @ weights.float().T)
    elif rows.dtype == out.dtype:
        torch.mm(rows, weights.T, out=out)
    else:
        out.copy_(torch.mm(rows, weights.T, out_dtype=torch.float32))


def _integer_product(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    import torch

    count = rows.shape[0]
    if rows.shape[1] % MULTIPLE or weights.shape[0] % MULTIPLE:
        raise ValueError(
            f"a product of int8 rows {list(rows.shape)} and weights {list(weights.shape)}: "
            f"pad N and K to multiples of {MULTIPLE}"
        )
    if count < LEAST_ROWS:
        rows = torch.cat([rows, rows.new_zeros(LEAST_ROWS - count, rows.shape[1])])
    return torch._int_mm(rows, weights.T)[:count]


def fill(step: Fill, buffers: Mapping[str, torch.Tensor]) -> None:
    buffers[step.buffer].zero_()
