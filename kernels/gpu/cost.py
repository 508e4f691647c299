"""A model of what steps take: bytes over bandwidth or products over their rate, and a launch."""

from __future__ import annotations

from .launch import Gpu
from .layer import BYTES, Layer

# Products of each dtype for one of halves.
RATES = {"f16": 1.0, "bf16": 1.0, "i8": 2.0, "f32": 1 / 15}
# Parts of the peak rate that a library reaches, and a kernel of Triton.
LIBRARY, TRITON = 0.75, 0.65
# Instructions behind each sum of an epilogue, and how many of them a multiprocessor does a second.
EPILOGUE, INSTRUCTIONS = 25, 128 * 1.5e9


def moved_seconds(gpu: Gpu, moved: float) -> float:
    """Of a launch that moves so many bytes."""
    return moved / gpu.bandwidth + gpu.launch_seconds


def product_seconds(
    gpu: Gpu, m: int, n: int, k: int, dtype: str, part: float = LIBRARY, kept: bool = False
) -> float:
    """Of a product of rows [m, k] and weights [n, k]; ``kept``: its sums go nowhere."""
    rate = gpu.products * RATES[dtype] * part
    moved = (m * k + n * k) * BYTES[dtype] + (0 if kept else m * n * 4)
    return max(m * n * k / rate, moved / gpu.bandwidth) + gpu.launch_seconds


def epilogue_seconds(layer: Layer, gpu: Gpu) -> float:
    """Of activations, rotations and sums in registers."""
    return layer.rows * layer.outputs * EPILOGUE / (INSTRUCTIONS * gpu.multiprocessors)


def read_seconds(gpu: Gpu, moved: float, blocks: int) -> float:
    """Of a launch that reads so many bytes in so many blocks: few leave multiprocessors idle."""
    busy = min(1.0, blocks / gpu.multiprocessors)
    return moved / (gpu.bandwidth * busy) + gpu.launch_seconds


def rotation_seconds(layer: Layer, gpu: Gpu) -> float:
    """Of rotating all rows."""
    one = BYTES[layer.outer] / layer.chosen + BYTES[layer.row_dtype]
    return moved_seconds(gpu, layer.rows * layer.channels * one)


def down_seconds(layer: Layer, gpu: Gpu) -> float:
    """Of w_down, where there is one."""
    if not layer.down:
        return 0.0
    return product_seconds(gpu, layer.tokens, layer.down, layer.outputs, layer.dtype)


def down_decode_seconds(layer: Layer, gpu: Gpu) -> float:
    """Of w_down in parts, and of adding them."""
    if not layer.down:
        return 0.0
    moved = layer.down * layer.outputs * BYTES[layer.dtype]
    return moved_seconds(gpu, moved) + gpu.launch_seconds
