"""A model of what steps take: bytes over bandwidth or products over their rate, and a launch.

Nothing in it was measured; it orders the kernels. A tuner measures.
"""

from __future__ import annotations

from .launch import Gpu
from .layer import BYTES, Layer

# Products of each dtype for one of halves.
RATES = {"f16": 1.0, "bf16": 1.0, "i8": 2.0, "f32": 1 / 15}
# Parts of the peak rate that a library reaches, and kernels of Triton: less where it has no tensor
# cores to use.
LIBRARY = {"f16": 0.7, "bf16": 0.7, "i8": 0.6, "f32": 0.9}
TRITON = {"f16": 0.7, "bf16": 0.7, "i8": 0.6, "f32": 0.5}
# Instructions behind each sum that products do not hide, and a multiprocessor's in a second.
EPILOGUE, INSTRUCTIONS = 12, 128 * 1.5e9


def moved_seconds(gpu: Gpu, moved: float) -> float:
    """Of a launch that moves so many bytes."""
    return moved / gpu.bandwidth + gpu.launch_seconds


def busy(gpu: Gpu, blocks: int) -> float:
    """The part of a GPU that so many blocks keep busy."""
    return min(1.0, blocks / gpu.multiprocessors)


def library_seconds(gpu: Gpu, m: int, n: int, k: int, dtype: str) -> float:
    """Of a product of rows [m, k] and weights [n, k]."""
    products = m * n * k / (gpu.products * RATES[dtype] * LIBRARY[dtype])
    moved = (m * k + n * k) * BYTES[dtype] + m * n * 4
    return max(products, moved / gpu.bandwidth) + gpu.launch_seconds


def up_seconds(layer: Layer, gpu: Gpu, blocks: int) -> float:
    """Of W_hat in so many blocks, whose sums stay where they are."""
    dtype = layer.row_dtype
    rate = gpu.products * RATES[dtype] * TRITON[dtype] * busy(gpu, blocks)
    moved = (layer.rows + layer.outputs) * layer.channels * BYTES[dtype] + layer.last_bytes
    products = layer.rows * layer.outputs * layer.channels / rate
    return max(products, moved / (gpu.bandwidth * busy(gpu, blocks))) + gpu.launch_seconds


def fused_seconds(layer: Layer, gpu: Gpu, blocks: int) -> float:
    """Of both products in so many blocks."""
    up = up_seconds(layer, gpu, blocks)
    rate = gpu.products * RATES[layer.dtype] * TRITON[layer.dtype] * busy(gpu, blocks)
    return up + layer.tokens * layer.outputs * layer.down / rate


def epilogue_seconds(layer: Layer, gpu: Gpu) -> float:
    """Of activations, rotations and sums in registers."""
    return layer.rows * layer.outputs * EPILOGUE / (INSTRUCTIONS * gpu.multiprocessors)


def rotation_seconds(layer: Layer, gpu: Gpu) -> float:
    """Of rotating all rows."""
    one = BYTES[layer.outer] / layer.chosen + BYTES[layer.row_dtype]
    return moved_seconds(gpu, layer.rows * layer.channels * one)


def down_seconds(layer: Layer, gpu: Gpu) -> float:
    """Of w_down, where there is one."""
    if not layer.down:
        return 0.0
    return library_seconds(gpu, layer.tokens, layer.down, layer.outputs, layer.dtype)


def up_decode_seconds(layer: Layer, gpu: Gpu, rows: int, blocks: int) -> float:
    """Of reading the codes of W_hat, and of a tile of ``rows``, which is multiplied as a whole."""
    dtype = layer.row_dtype
    numbers = layer.outputs * layer.channels
    products = rows * numbers / (gpu.products * RATES[dtype] * TRITON[dtype])
    reading = numbers / 4 / gpu.bandwidth
    return max(products, reading) / busy(gpu, blocks) + gpu.launch_seconds


def down_decode_seconds(layer: Layer, gpu: Gpu) -> float:
    """Of w_down in parts, and of adding them."""
    if not layer.down:
        return 0.0
    moved = layer.down * layer.outputs * BYTES[layer.dtype]
    return moved_seconds(gpu, moved) + gpu.launch_seconds
