"""Small Triton kernels, and some that cannot be served. Triton reads annotations: no others."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scale_rows(x, y, count, factor, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(x + at, mask=at < count, other=0.0)
    tl.store(y + at, row * factor, mask=at < count)


@triton.jit
def product(a, b, c, depth, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """c = a @ b.T: a [M, depth], b [N, depth]."""
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros((M, N), dtype=tl.float32)
    for first in range(0, depth, K):
        rows = tl.load(a + m[:, None] * depth + first + k[None, :])
        columns = tl.load(b + n[None, :] * depth + first + k[:, None])
        total = tl.dot(rows, columns, total)
    tl.store(c + m[:, None] * N + n[None, :], total)


@triton.jit
def spills(x, y, BLOCK: tl.constexpr):
    """Holds more than registers can."""
    at = tl.arange(0, BLOCK)
    row = tl.load(x + at)
    tl.store(y + at, row - tl.sum(row))


@triton.jit
def described(x, y, rows, BLOCK: tl.constexpr):
    """A tensor descriptor made in a kernel lies in memory that Triton asks for."""
    tensor = tl.make_tensor_descriptor(x, [rows, 64], [64, 1], [BLOCK, 64])
    tl.store(y + tl.arange(0, BLOCK), tl.sum(tensor.load([0, 0]), 1))


@triton.jit
def wrong(x, BLOCK: tl.constexpr):
    tl.store(x + tl.arange(0, BLOCK), tl.arange(0, BLOCK + 16))


@triton.jit
def coarse(x, y, N: tl.constexpr):
    """A product that asks for less precision than its operands have."""
    n = tl.arange(0, N)
    at = n[:, None] * N + n[None, :]
    square = tl.load(x + at)
    tl.store(y + at, tl.dot(square, square, input_precision="tf32"))
